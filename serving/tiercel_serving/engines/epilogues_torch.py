"""Fuse bias and ReLU into matrix products, for a package that is compiled for a GPU.

AOTInductor calls cuBLAS for a product and emits ``relu`` as a separate kernel, which reads and writes the
whole result once more. cuBLASLt computes both in the product's epilogue; torch exposes this as
``_addmm_activation``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def fuse_activations(program: torch.export.ExportedProgram) -> int:
    """Fuse each product whose only reader is a ReLU with it, and return how many were fused.

    Parameters
    ----------
    program
        As ``torch.export`` writes it; its graph is changed in place.
    """
    graph, fused = program.graph_module.graph, 0
    for node in list(graph.nodes):
        if node.target in (aten.relu.default, aten.relu_.default) and _is_fusible(node.args[0]):
            _fuse(graph, node.args[0], node)
            fused += 1
    program.graph_module.recompile()
    return fused


def _is_fusible(product: Any) -> bool:
    """Return whether a node is a product with a bias, one reader, and no dynamic size except the batch."""
    if product.target is not aten.linear.default or len(product.users) != 1 or len(product.args) != 3:
        return False
    return all(isinstance(size, int) for size in product.meta["val"].shape[1:])


def _fuse(graph: Graph, product: Node, relu: Node) -> None:
    given, weight, bias = product.args

    def call(target: Any, *args: Any) -> Node:
        made = graph.call_function(target, args)
        made.meta["val"] = target(*(one.meta["val"] if isinstance(one, Node) else one for one in args))
        return made

    shape = [-1, *product.meta["val"].shape[1:]]
    with graph.inserting_before(relu):
        flat = call(aten.reshape.default, given, [-1, given.meta["val"].shape[-1]])  # type: ignore[union-attr]
        sums = call(aten._addmm_activation.default, bias, flat, call(aten.t.default, weight))
        made = call(aten.reshape.default, sums, shape)
    relu.replace_all_uses_with(made)
    graph.erase_node(relu)
    graph.erase_node(product)
