"""Scores of images by a named protocol."""
