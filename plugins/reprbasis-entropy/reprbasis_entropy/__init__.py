"""Feature-set entropy: how many bits the codes of a set of activations carry."""
