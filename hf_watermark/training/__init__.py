"""Embedding marks: the trainer, what it plans, publishes and asks."""
