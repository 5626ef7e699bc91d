"""Model families: one file a family, its settings, model and fitting; ``table.py`` lists them."""
