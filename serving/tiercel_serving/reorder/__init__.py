"""Reorder steps: from the ranker's scores to the final order. One file per kind; ``table.py`` lists them."""
