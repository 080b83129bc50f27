"""Captions: reading lists of them, encoding them into features, and keeping those for the networks that take them in."""
