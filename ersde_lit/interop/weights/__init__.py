"""Readers of weights: EDM, guided-diffusion, diffusers' UNet2DModel, safetensors."""
