"""A data set as models learn it: interactions by row, packed tensors, and the columns that they hold."""
