"""Stages at work: a chain of them, batches of requests, and Triton's Python backend."""
