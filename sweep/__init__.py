"""Sweeps: many runs (tasks x variants x seeds) on a Slurm cluster or on one machine."""
