"""Do the layers of a model share a manifold?"""
