"""Benchmark of Tiercel against a typical hand-written service."""
