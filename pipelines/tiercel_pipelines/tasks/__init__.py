"""Tasks: what a model learns, apart from the model. One file a task; ``table.py`` lists them."""
