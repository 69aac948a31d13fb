"""Preference records, their sources and the batches made of them."""
