"""A set of shards and its manifest: written, read, verified, repaired."""
