"""Exact lookups in memory-mapped tables: integers, floats and strings → codes."""
