"""Rules: which items may be recommended. One file a kind; ``table.py`` lists them."""
