"""Other people's weights and interfaces: EDM, guided-diffusion, diffusers, k-diffusion. Import the file you need."""
