"""Rules: which items may be recommended. One file a kind; ``table.py`` has the contract and the rows."""
