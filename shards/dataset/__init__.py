"""Data sets of shards with their manifest: writing, reading, verification and repair."""
