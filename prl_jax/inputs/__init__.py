"""Checks and measurements before the first stage starts."""
