"""Pipeline steps: harvest, learn, evaluate."""
