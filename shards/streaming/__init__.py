"""Batches of pairs for training, in a fixed order."""
