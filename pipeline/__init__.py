"""What a person touches: the `tokenleap` command, its presets, the run folder and the report."""
