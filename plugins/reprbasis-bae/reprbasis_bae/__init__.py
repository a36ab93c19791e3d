"""Binary autoencoders: codes of 0 and 1 with a price on their entropy."""
