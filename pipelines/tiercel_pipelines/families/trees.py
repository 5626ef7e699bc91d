"""XGBoost's trees → ONNX's ``TreeEnsembleRegressor`` (ai.onnx.ml 3).

Thresholds and rows stay float32, as XGBoost compares them: ``x < threshold`` goes left, and a missing value
goes to the side that the tree learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tree_features import ROWS, FeatureGraph


@dataclass(frozen=True)
class Trees:
    """The n nodes of all trees, each tree starting with its root.

    Parameters
    ----------
    tree, node
        ``[n]`` which tree, and which node of it.
    feature, threshold
        ``[n]`` column and float32 threshold; the value of a leaf.
    left, right
        ``[n]`` child nodes; -1 for a leaf.
    missing_left
        ``[n]`` whether a missing value goes left.
    """

    tree: list[int]
    node: list[int]
    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    missing_left: list[int]

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Trees:
        """Read the JSON form of a booster of trees."""
        found = cls([], [], [], [], [], [], [])
        for number, tree in enumerate(document["learner"]["gradient_booster"]["model"]["trees"]):
            waiting = [0]  # pruned nodes are not reachable from the root
            while waiting:
                node = waiting.pop()
                left, right = tree["left_children"][node], tree["right_children"][node]
                found.tree.append(number)
                found.node.append(node)
                found.feature.append(tree["split_indices"][node])
                found.threshold.append(float(np.float32(tree["split_conditions"][node])))
                found.left.append(left)
                found.right.append(right)
                found.missing_left.append(int(tree["default_left"][node]))
                waiting += [] if left < 0 else [right, left]
        return found


def add_trees(graph: FeatureGraph, trees: Trees | None, item_tensor: str, scale: float) -> None:
    """Add ``rank_score [B, K, 1]`` to a feature graph: trees, and ``scale`` times retrieval's score.

    Parameters
    ----------
    graph
        The features, to which the nodes are added.
    trees
        None if there are no trees.
    item_tensor
        A tensor of the candidates, whose first two axes are B and K.
    scale
        0 leaves retrieval's score out.
    """
    parts = []
    if trees is not None:
        values = graph.do("TreeEnsembleRegressor", ROWS, domain="ai.onnx.ml", **_attributes(trees))
        shape = graph.do("Concat", graph.do("Shape", item_tensor, start=0, end=2), graph.ints(1), axis=0)
        parts.append(graph.do("Reshape", values, shape))
    if scale or not parts:
        if scale:
            score = graph.do("Unsqueeze", "kept_score", graph.ints(2))
        else:
            score = graph.do("Cast", graph.do("Gather", item_tensor, graph.ints(0), axis=2), to=1)
        graph.constants["scale"] = np.array([scale], np.float32)
        parts.append(graph.do("Mul", score, "scale"))
    last = graph.do("Identity", parts[0]) if len(parts) == 1 else graph.do("Add", *parts)
    graph.nodes[-1].output[0] = "rank_score"
    graph.nodes[-1].name = f"rank_score_of_{last}"


def _attributes(trees: Trees) -> dict[str, Any]:
    leaf = [left < 0 for left in trees.left]
    return {
        "n_targets": 1,
        "nodes_treeids": trees.tree,
        "nodes_nodeids": trees.node,
        "nodes_featureids": [0 if end else feature for feature, end in zip(trees.feature, leaf, strict=True)],
        "nodes_values": [0.0 if end else value for value, end in zip(trees.threshold, leaf, strict=True)],
        "nodes_modes": ["LEAF" if end else "BRANCH_LT" for end in leaf],
        "nodes_truenodeids": [max(node, 0) for node in trees.left],
        "nodes_falsenodeids": [max(node, 0) for node in trees.right],
        "nodes_missing_value_tracks_true": trees.missing_left,
        "target_treeids": [tree for tree, end in zip(trees.tree, leaf, strict=True) if end],
        "target_nodeids": [node for node, end in zip(trees.node, leaf, strict=True) if end],
        "target_ids": [0] * sum(leaf),
        "target_weights": [value for value, end in zip(trees.threshold, leaf, strict=True) if end],
    }
