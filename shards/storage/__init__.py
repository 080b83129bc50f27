"""Atomic reads and writes of files on disk and of objects behind a URL."""
