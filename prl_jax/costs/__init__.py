"""What the stages of a config hold and call, as abstract arrays."""
