"""Maps between the spaces of two models: Procrustes and its relatives, regressions, canonical correlations."""
