"""Captions: reads lists of captions, encodes them into features, and caches the features."""
