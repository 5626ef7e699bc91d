"""Features of a recipe: its fitted workflow, and compiled programs over Parquet files."""
