"""Tasks: training objectives, separate from models. One file for each task; ``table.py`` lists them."""
