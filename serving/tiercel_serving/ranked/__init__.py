"""Arrays of candidates: in what order, and who must not get which."""
