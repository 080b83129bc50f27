"""The folder of a run and the results in it."""
