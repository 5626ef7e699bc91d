"""Trained parts → a release: checks, tables, indexes, golden vectors, verification."""
