"""Exact lookups in memory-mapped tables: integers and strings → codes."""
