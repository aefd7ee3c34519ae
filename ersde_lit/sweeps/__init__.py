"""Sweeps: samplers x NFE x seeds, sampled, measured, kept cell by cell, and reported."""
