"""JumpReLU dictionaries: one learned threshold per latent."""
