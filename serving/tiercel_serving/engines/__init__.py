"""Engines: what runs a dense model."""
