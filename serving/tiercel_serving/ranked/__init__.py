"""Arrays of candidates: their order, and masks of items that users must not get."""
