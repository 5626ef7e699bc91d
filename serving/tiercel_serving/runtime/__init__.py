"""Execution of stages: chains, batches of requests, and the adapter to Triton's Python backend."""
