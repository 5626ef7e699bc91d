"""Recipes that come with Tiercel: ``movielens`` and ``synthetic``. Copy one and change it."""
