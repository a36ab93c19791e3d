"""GPT-2: LayerNorm, learned positions, one projection for queries, keys and values"""
