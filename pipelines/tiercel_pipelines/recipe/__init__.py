"""Recipes: what one says, how it is loaded, and what can be wrong with it."""
