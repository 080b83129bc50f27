"""Published checkpoint files: download, inspection and import."""
