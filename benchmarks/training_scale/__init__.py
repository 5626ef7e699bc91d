"""Benchmark of training on synthetic data: wall time, CPU time and memory.

``python -m benchmarks.training_scale`` trains two-tower retrieval and DLRM with their defaults on 30,000
users × 24,000 items × 300,000 interactions, and on ten times as many, each in a fresh process.
"""
