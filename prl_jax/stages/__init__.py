"""Stages: what each trains or evaluates, from which inputs to which files."""
