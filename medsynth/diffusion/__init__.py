"""How a latent diffusion model is trained and sampled."""
