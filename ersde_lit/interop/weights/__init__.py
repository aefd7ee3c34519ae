"""Other people's weights: EDM, guided-diffusion, diffusers' UNet2DModel, safetensors."""
