"""Engines: what multiplies the matrices. See `t1_edge.engines.base` for the boundary."""
