"""Model families: one file per family, with its settings, model and fitting; ``table.py`` lists them."""
