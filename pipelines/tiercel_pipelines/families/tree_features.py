"""The features of trees: packed tensors → one row of numbers for each candidate, as an ONNX graph.

Training runs the same graph that is served, so a threshold means the same in both. Features of the user alone
are computed once and then repeated for each candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs, Side

#: Categorical lists with more categories are left out, since each category would be a column.
MOST_CATEGORIES = 256

#: The output: ``[B·K, F]`` float32.
ROWS = "rows"

OPSET = 18


class FeatureGraph:
    """The nodes that compute :data:`ROWS` ``[B·K, F]`` from packed tensors.

    A category becomes its code, which NVTabular assigns by frequency; a list becomes a 0 or 1 for each
    category; a null number becomes NaN, for which trees have a branch of their own. The history becomes its
    length and, for each of its columns, the share of items with the candidate's value.

    Parameters
    ----------
    inputs
        The columns of both sides, and the history's.
    scored
        Whether retrieval's score, its distance from the best score, and its source are among the features.
    """

    def __init__(self, inputs: ModelInputs, *, scored: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._inputs: dict[str, tuple[int, int]] = {}
        users, items = self._side(inputs.user), self._side(inputs.item)
        if inputs.history:
            length = self._input("history_length", TensorProto.INT32, 2)
            length = self.do("Cast", length, to=TensorProto.FLOAT)
            users.append(length)
            places = [column.name for column in inputs.item.cat]
            items += [
                self._share(place, places.index(name), length) for place, name in enumerate(inputs.history)
            ]
        if scored:
            items += self._scores()
        rows = self.do("Concat", *items, axis=2)
        if users:
            user = self.do("Unsqueeze", self.do("Concat", *users, axis=1), self.ints(1))
            count = self.do("Shape", rows, start=1, end=2)
            wide = self.do("Expand", user, self.do("Concat", self.ints(1), count, self.ints(1), axis=0))
            rows = self.do("Concat", wide, rows, axis=2)
        width = self.do("Shape", rows, start=2, end=3)
        shape = self.do("Concat", self.ints(-1), width, axis=0)
        self.nodes.append(helper.make_node("Reshape", [rows, shape], [ROWS], name=ROWS))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return tuple(self._inputs)

    def do(self, operator: str, *read: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(read), [name], name=name, **attributes))
        return name

    def ints(self, *values: int) -> str:
        """Return the name of a constant ``[n]`` int64."""
        name = "ints_" + "_".join(map(str, values))
        self.constants[name] = np.array(values, np.int64)
        return name

    def model(self, output: str, rank: int) -> onnx.ModelProto:
        """Return the graph up to a float32 ``output`` with ``rank`` axes, all of them dynamic."""

        def put(name: str, kind: int, size: int) -> onnx.ValueInfoProto:
            axes = ["batch", *[f"{name}_{axis}" for axis in range(1, size)]]
            return helper.make_tensor_value_info(name, kind, axes)

        made = helper.make_graph(
            self.nodes,
            "trees",
            [put(name, *one) for name, one in self._inputs.items()],
            [put(output, TensorProto.FLOAT, rank)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(made, opset_imports=sets, ir_version=9)

    def _input(self, name: str, kind: int, rank: int) -> str:
        self._inputs[name] = (kind, rank)
        return name

    def _side(self, side: Side) -> list[str]:
        """Return one side's features, ``[B, f]`` of the user or ``[B, K, f]`` of the candidates."""
        rank = 3 if side.part == "item" else 2
        found = []
        if side.cat:
            codes = self._input(f"{side.part}_cat", TensorProto.INT64, rank)
            found.append(self.do("Cast", codes, to=TensorProto.FLOAT))
        if side.num:
            found.append(self._input(f"{side.part}_num", TensorProto.FLOAT, rank))
        for column in side.lists:
            if column.cardinality is None or column.cardinality > MOST_CATEGORIES:
                continue
            codes = self._input(side.list_tensor(column), TensorProto.INT64, rank)
            each = self.do("Unsqueeze", codes, self.ints(rank))
            same = self.do("Equal", each, self.ints(*range(1, max(column.cardinality, 2))))
            found.append(self.do("ReduceMax", self.do("Cast", same, to=1), self.ints(rank - 1), keepdims=0))
        return found

    def _share(self, place: int, column: int, length: str) -> str:
        """Return the share of the history that has the candidate's value in a column: ``[B, K, 1]``."""
        history = self._input("history_cat", TensorProto.INT64, 3)
        had = self.do("Gather", history, self.ints(place), axis=2)  # [B, L, 1]
        had = self.do("Transpose", had, perm=[0, 2, 1])
        own = self.do("Gather", "item_cat", self.ints(column), axis=2)  # [B, K, 1]
        same = self.do("Cast", self.do("Equal", own, had), to=TensorProto.FLOAT)
        places = self.do("Shape", history, start=1, end=2)
        one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1])
        ones = self.do("ConstantOfShape", places, value=one)
        behind = self.do("CumSum", ones, self.ints(0))  # 1, 2, …, L
        real = self.do("Cast", self.do("LessOrEqual", behind, length), to=TensorProto.FLOAT)
        same = self.do("Mul", same, self.do("Unsqueeze", real, self.ints(1)))
        total = self.do("ReduceSum", same, self.ints(2), keepdims=1)
        self.constants["least"] = np.ones(1, np.float32)
        most = self.do("Unsqueeze", self.do("Max", length, "least"), self.ints(1))
        return self.do("Div", total, most)

    def _scores(self) -> list[str]:
        score = self._input("kept_score", TensorProto.FLOAT, 2)
        source = self.do("Cast", self._input("kept_source", TensorProto.INT32, 2), to=TensorProto.FLOAT)
        # Candidates are sorted best first.
        best = self.do("Gather", score, self.ints(0), axis=1)
        behind = self.do("Sub", score, best)
        return [self.do("Unsqueeze", one, self.ints(2)) for one in (score, behind, source)]


class FeatureRows:
    """A session that runs a feature graph: named arrays → ``[B·K, F]`` float32."""

    def __init__(self, graph: FeatureGraph) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            graph.model(ROWS, 2).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = graph.input_names

    def __call__(self, arrays: Arrays) -> Array:
        """Return the rows of all candidates, user by user."""
        (rows,) = self._session.run([ROWS], {name: arrays[name] for name in self._names})
        return np.asarray(rows)
