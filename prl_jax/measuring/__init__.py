"""How many tokens records take, and which of them cannot be read."""
