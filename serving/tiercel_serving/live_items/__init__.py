"""Items added, changed and withdrawn between releases: written to the store, live in every process."""
