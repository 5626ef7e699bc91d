"""Users and items as the stages read them: memory-mapped, gathered by row."""
