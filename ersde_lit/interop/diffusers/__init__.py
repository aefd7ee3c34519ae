"""ER-SDE-Solvers as schedulers of diffusers."""
