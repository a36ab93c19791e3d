"""Editors that need forward passes and linear algebra alone: no loss is differentiated anywhere."""
