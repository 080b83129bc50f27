"""What a person touches: the `onestep` command, its presets, the run folder and the report."""
