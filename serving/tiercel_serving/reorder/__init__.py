"""Reorder steps: from the ranker's scores to the final order. One file a kind; ``table.py`` lists them."""
