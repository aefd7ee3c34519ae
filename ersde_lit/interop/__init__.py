"""Weights and interfaces of EDM, guided-diffusion, diffusers and k-diffusion; import the module you need."""
