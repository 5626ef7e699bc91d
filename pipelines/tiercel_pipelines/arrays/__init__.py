"""A data set as models learn it: interactions by row, packed tensors, and which columns lie in them."""
