"""TopK codes, each shortened by the first code that is left out"""
