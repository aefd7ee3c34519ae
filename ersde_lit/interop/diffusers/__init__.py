"""Schedulers with ER-SDE-Solvers for diffusers."""
