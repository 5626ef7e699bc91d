"""Sources of candidates. One file a kind; ``table.py`` lists them, ``merged.py`` joins them."""
