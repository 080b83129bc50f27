"""The meaning of a pair's bytes. Nothing here reads or writes files."""
