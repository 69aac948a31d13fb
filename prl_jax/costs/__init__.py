"""Abstract arrays in place of those that the stages of a config hold, and the functions that they call."""
