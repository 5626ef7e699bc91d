"""From an ONNX graph to loops, operator by operator, for a batch of one user.

Users are independent, so a graph gives each user of any batch the result of a batch of one. With a batch of
one, all shapes are known, and most operators that only move elements become views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tiercel_serving.engines.loops import FIRST_INPUT, Put

from .lowering import Lowering
from .operators import OPERATORS
from .values import Refused, Value, dense_steps

#: Range of the opsets whose operators the loops implement.
OLDEST_OPSET, NEWEST_OPSET = 13, 22

#: Limits: weights outside of embedding tables, all weights, multiplications in matrix products for one user,
#: and numbers of work space. In larger models, operator overhead no longer dominates, and ONNX Runtime reads
#: weights once for all users of a batch. Loops took 3.7 times as long as ONNX Runtime for eight users of a
#: tower with 246,000 weights, and 1.25 times as long for a ranker with 23 million multiplications.
DENSE, ALL, MULTIPLICATIONS, WORK_SPACE = 1 << 16, 1 << 24, 1 << 23, 1 << 20


def lower(file: Path) -> str:
    """Write an ONNX file with one output as loops beside it; return why not, or '' if it was written."""
    model = onnx.load(str(file), load_external_data=False)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        return f"operator set {opset}, not {OLDEST_OPSET} to {NEWEST_OPSET}"
    total = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    if total > ALL:
        return f"{total:,} weights, more than {ALL:,}"
    onnx.load_external_data_for_model(model, str(file.parent))
    lowering, inputs = Lowering(model), []
    try:
        for place, put in enumerate(model.graph.input):
            inputs.append(_put(put))
            dims, dtype = (1, *inputs[-1].dims), inputs[-1].dtype
            lowering.values[put.name] = Value(FIRST_INPUT + place, 0, dims, dense_steps(dims), dtype)
        for node in model.graph.node:
            _add(lowering, node)
        output = _put(model.graph.output[0])
        result = lowering.floats(output.name)
        if result.shape != (1, *output.dims):
            raise Refused(f"an output of {result.shape}")
        listed, weights = lowering.writer.listed(inputs, output, result)
    except Refused as refused:
        return str(refused)
    for what, size, most in (
        ("dense weights", lowering.dense, DENSE),
        ("multiplications", lowering.writer.multiplications, MULTIPLICATIONS),
        ("numbers between loops", listed.work, WORK_SPACE),
    ):
        if size > most:
            return f"{size:,} {what}, more than {most:,}"
    listed.write(file, weights)
    return ""


def _add(lowering: Lowering, node: onnx.NodeProto) -> None:
    """Lower a node; one that reads only constants is computed now."""
    if node.op_type == "Shape" and node.input[0] in lowering.values:
        lowering.constants[node.output[0]] = np.array(lowering.values[node.input[0]].shape, np.int64)[
            _attributes(node).get("start", 0) : _attributes(node).get("end")
        ]
        return
    read = [name for name in node.input if name]
    if node.op_type == "Constant" or (read and all(name in lowering.constants for name in read)):
        found = ReferenceEvaluator(node).run(None, {name: lowering.constants[name] for name in read})
        lowering.constants.update(zip(node.output, map(np.asarray, found), strict=True))
        return
    write = OPERATORS.get(node.op_type)
    if write is None or node.domain not in ("", "ai.onnx"):
        raise Refused(f"the operator {node.op_type}")
    made = write(lowering, node, _attributes(node))
    values = made if isinstance(made, tuple) else (made,)
    if len(node.output) != len(values):
        raise Refused(f"{len(node.output)} outputs of {node.op_type}")
    lowering.values.update(zip(node.output, values, strict=True))


def _put(put: onnx.ValueInfoProto) -> Put:
    kind = put.type.tensor_type
    dims = tuple(dim.dim_value for dim in kind.shape.dim)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    if not dims or not all(dims[1:]) or dtype not in ("float32", "int32", "int64", "bool"):
        raise Refused(f"{put.name} of {dtype} {dims}")
    return Put(put.name, dtype, dims[1:])


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}
