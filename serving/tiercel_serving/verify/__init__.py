"""Comparison of what is served with what was trained: comparers, golden vectors, checks."""
