"""Editors to compare with: they differentiate a loss on the logits through the layers of the model."""
