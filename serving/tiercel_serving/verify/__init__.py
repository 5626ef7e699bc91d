"""What is served against what was trained: comparers, golden vectors, checks."""
