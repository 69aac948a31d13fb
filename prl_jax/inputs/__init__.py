"""What is checked and measured before the first stage starts."""
