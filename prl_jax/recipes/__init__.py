"""Configs that several experiments share, as functions; what they are made of is in `stages.config`."""
