"""Offline evaluation: ranking metrics, and the quality of what is served."""
