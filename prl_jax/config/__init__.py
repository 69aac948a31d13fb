"""Configs: what can be set, what each kind of stage accepts, and how durations are read."""
