"""Sources of candidates. One file per kind; ``table.py`` lists them, ``merged.py`` joins them."""
