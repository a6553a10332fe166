"""What a network is: autoencoder, denoiser, conditioning, feature extractors, shipped weights."""
