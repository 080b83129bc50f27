"""Ablations over the number of pairs and other settings."""
