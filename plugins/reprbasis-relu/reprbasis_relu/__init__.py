"""ReLU dictionaries with an L1 penalty."""
