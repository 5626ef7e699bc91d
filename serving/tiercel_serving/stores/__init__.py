"""User stores: data of users by raw id. One file for each kind; ``table.py`` lists them."""
