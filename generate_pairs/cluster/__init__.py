"""Runs work units in this process, on Dask or on Slurm."""
