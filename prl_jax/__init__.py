"""Pairwise RLHF in JAX: preference models that compare, policies that win comparisons."""

__version__ = "0.1.0"
