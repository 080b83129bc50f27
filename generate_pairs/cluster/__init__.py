"""Running work units here, on Dask or on Slurm."""
