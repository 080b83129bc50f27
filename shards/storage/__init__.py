"""Files on disk or behind a URL, written whole or not at all."""
