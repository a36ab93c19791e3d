"""Graphs: circuits drawn with words, and any graph as a page, as SVG and as attribution-graph JSON."""
