"""Describe the compiled form of a workflow, for ``tiercel explain-features``."""
