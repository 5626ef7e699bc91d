"""Tiercel beside the service that people write by hand."""
