"""User stores: what is known of users, by raw id. One file a kind; ``table.py`` has the contract and the rows."""
