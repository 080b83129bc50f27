"""The configuration of a whole run, its keys and its presets."""
