"""Tables of users and items for the stages: memory-mapped, gathered by row."""
