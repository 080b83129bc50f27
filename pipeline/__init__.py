"""The user interface: the `tokenleap` command, its presets, run folders and reports."""
