"""Recipes, data sets, training, evaluation, and the `tiercel` command."""
