"""Tensors on a device: copies to and from the host, CUDA graphs, order, masks, exact search.

Modules named ``…_torch`` import torch. They are named by rows of tables, and imported by no other module at
the top level.
"""
