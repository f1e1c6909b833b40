"""Benchmarks of natgrad_fast beside its peers: `natgrad-fast bench --help`.

Shapes: N cases, C outputs, P parameters, K vectors at once, d_l the width of layer l. Parameters
are one flat array, layer by layer: W_l as (d_l, d_{l-1}) in C order, then b_l.
"""
