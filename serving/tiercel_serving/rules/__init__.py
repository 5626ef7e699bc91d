"""Rules: which items may be recommended. One file per kind; ``table.py`` lists them."""
