"""Can a judge tell from text alone where a latent is active?"""
