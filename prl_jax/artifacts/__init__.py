"""Model directories: what is in them, and how a model is loaded from one."""
