"""User stores: what is known of users, by raw id. One file a kind; ``table.py`` lists them."""
