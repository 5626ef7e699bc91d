"""Benchmark of the same models in several engines: in process at each batch size, and served."""
