"""Sweeps of samplers, NFEs and seeds: sampled, measured, stored and reported; resumable."""
