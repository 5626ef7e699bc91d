"""User stores: user data by raw id. One file per kind; ``table.py`` lists them."""
