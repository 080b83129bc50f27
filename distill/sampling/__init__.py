"""Sampling methods and the sampling job."""
