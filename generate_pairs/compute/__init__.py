"""Devices, threads and precision: what must be fixed for a pair to have the same bytes."""
