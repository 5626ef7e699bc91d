"""Built-in recipes to copy and change: ``movielens``, ``movielens_blend``, ``sequences``, ``synthetic``."""
