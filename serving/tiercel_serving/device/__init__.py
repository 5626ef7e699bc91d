"""Tensors on a device: where they are, what crosses, order, masks, exact search.

What ends in ``_torch`` imports torch: rows of tables name it, no other module imports it.
"""
