"""INT8 and FP8: quantize wide matrix products with Q/DQ nodes, and keep everything else in float32.

ModelOpt computes the scales. It receives the graph's products as linear layers, and their activations on the
release's own requests. The graph is rewritten here, because torch's exporter can't write the modules that
ModelOpt produces. Inputs, outputs, embeddings, sums, and products with few input or output columns stay in
float32, as with half precision (:mod:`.casts`).

INT8 uses one scale per output column of a weight and one per activation, whose columns are smoothed first
(Xiao et al. 2023, "SmoothQuant"). FP8 (E4M3) uses one scale per weight and one per activation (Micikevicius
et al. 2022, "FP8 formats for deep learning"). TensorRT reads the QuantizeLinear and DequantizeLinear nodes
from the graph, and ONNX Runtime runs it on any CPU.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

from tiercel_serving.spec import Array, Arrays

from ..errors import ExportError, ExportInputError
from .casts import NARROW, drop_unused, refuse_control_flow
from .onnx import OPSET


@dataclass(frozen=True)
class EightBits:
    """An 8-bit type.

    Parameters
    ----------
    number, dtype, largest
        The type's number in ONNX, its NumPy dtype, and its largest value, to which a tensor's largest
        magnitude is scaled.
    opset
        The first opset whose QuantizeLinear supports it.
    config
        The name of ModelOpt's settings for it.
    algorithm
        ModelOpt's calibration algorithm and its parameters.
    """

    number: int
    dtype: npt.DTypeLike
    largest: float
    opset: int
    config: str
    algorithm: Mapping[str, Any]


#: Precision → its type. Of SmoothQuant's alpha 0.5, 0.75 and 1, 0.75 changed the rankings of MovieLens least.
EIGHT_BITS: Mapping[str, EightBits] = {
    "int8": EightBits(
        TensorProto.INT8,
        np.int8,
        127.0,
        13,
        "INT8_SMOOTHQUANT_CFG",
        {"method": "smoothquant", "alpha": 0.75},
    ),
    "fp8": EightBits(
        TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448.0, 19, "FP8_DEFAULT_CFG", {"method": "max"}
    ),
}

#: The first ONNX IR version that has both types.
LEAST_IR = 9

#: Lower bound of the largest magnitude, so that a tensor that is 0 in every request has a nonzero scale.
LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Product:
    """A matrix product with a constant weight.

    Parameters
    ----------
    node
        Its index among the graph's nodes.
    read
        The name of its input activation.
    weight
        ``[in, out]`` float32.
    """

    node: int
    read: str
    weight: Array


@dataclass(frozen=True)
class Scales:
    """The quantization parameters of a product.

    Parameters
    ----------
    weight
        ``[in, out]`` float32; it compensates for ``evened``, if given.
    weight_scale
        ``[out]`` or ``[]`` float32.
    read_scale
        Scale of the activation.
    evened
        ``[in]`` float32: SmoothQuant's factors, by which the activation is multiplied first; None for none.
    """

    weight: Array
    weight_scale: Array
    read_scale: float
    evened: Array | None = None


#: ``find_scales(products, precision, batches)``: the scales of each product. ``batches()`` yields, for each
#: batch of requests, the activation of each product.
FindScales = Callable[[Sequence[Product], str, Callable[[], Iterator[Sequence[Array]]]], list[Scales]]


def quantize_graph(
    model: onnx.ModelProto,
    precision: str,
    requests: Sequence[Arrays],
    what: str,
    find_scales: FindScales | None = None,
) -> onnx.ModelProto:
    """Return a copy of the graph with its wide products quantized to eight bits.

    Parameters
    ----------
    model
        A float32 graph with its weights.
    precision
        A row of :data:`EIGHT_BITS`.
    requests
        Representative batches of its inputs, for calibration.
    what
        Name of the model, for messages.
    find_scales
        Computes the scales; None uses ModelOpt.

    Raises
    ------
    ExportError
        No product is wide enough to benefit, the graph has control flow, or it is of an old operator set and
        can't be converted.
    ExportInputError
        ``requests`` is empty.
    """
    refuse_control_flow(model, precision)
    row = EIGHT_BITS[precision]
    made = _converted(model, row.opset, what)
    products = wide_products(made)
    if not products:
        raise ExportError(
            f"{what}: no layer of it takes and gives {NARROW} columns or more, so nothing would "
            f"be computed in {precision}; export it in float32"
        )
    if not requests:
        raise ExportInputError(
            f"{what}: {precision} learns its scales from requests of known users, and there are none; give "
            "users and interactions, or export in half precision, which needs no requests"
        )
    scales = (find_scales or modelopt_scales)(products, precision, _observed(made, products, requests))
    nodes, rewritten = list(made.graph.node), dict(zip((p.node for p in products), scales, strict=True))
    del made.graph.node[:]
    for place, node in enumerate(nodes):
        if place in rewritten:
            _quantize(made, node, rewritten[place], row)
        made.graph.node.append(node)
    made.ir_version = max(made.ir_version, LEAST_IR)
    drop_unused(made)
    del made.graph.value_info[:]
    return made


def _converted(model: onnx.ModelProto, opset: int, what: str) -> onnx.ModelProto:
    """Return a copy of the graph in at least an operator set."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for one in made.opset_import:
        if one.domain in ("", "ai.onnx") and one.version < opset:
            if one.version >= OPSET:  # from it on, the operators in our graphs only gained types
                one.version = opset
                continue
            try:
                return version_converter.convert_version(model, opset)
            except Exception as error:
                raise ExportError(
                    f"{what}: it can't be converted from operator set {one.version} to {opset} "
                    f"({str(error).strip()}); export it again with opset {OPSET}"
                ) from error
    return made


def wide_products(model: onnx.ModelProto) -> list[Product]:
    """Return the products whose constant weight has at least :data:`~.casts.NARROW` rows and columns."""
    weights = {one.name: one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT}
    found = []
    for place, node in enumerate(model.graph.node):
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
            continue
        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        weight = numpy_helper.to_array(weights[node.input[1]])
        plain = settings.get("alpha", 1.0) == 1.0 and not settings.get("transA", 0)
        if weight.ndim != 2 or not plain:
            continue
        weight = weight.T if settings.get("transB", 0) else weight
        if min(weight.shape) >= NARROW:
            found.append(Product(place, node.input[0], np.ascontiguousarray(weight)))
    return found


def _observed(
    model: onnx.ModelProto, products: Sequence[Product], requests: Sequence[Arrays]
) -> Callable[[], Iterator[Sequence[Array]]]:
    """Return a function that yields, for each batch of requests, the activation of each product."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [product.read for product in products]
    there = {tensor.name for tensor in (*shown.graph.output, *shown.graph.input)}
    for name in dict.fromkeys(names):
        if name not in there:
            shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_graph(shown)
    inputs = [put.name for put in session.get_inputs()]

    def batches() -> Iterator[Sequence[Array]]:
        for request in requests:
            given = {name: request[name] for name in inputs}
            computed = [name for name in dict.fromkeys(names) if name not in given]
            known = given | dict(zip(computed, session.run(computed, given), strict=True))
            yield [known[name] for name in names]

    return batches


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session on this CPU that keeps the graph's quantization and casts."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Higher levels remove a cast followed by its reverse.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def modelopt_scales(
    products: Sequence[Product], precision: str, batches: Callable[[], Iterator[Sequence[Array]]]
) -> list[Scales]:
    """Compute the scales with NVIDIA ModelOpt; see :data:`FindScales`."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional libraries that are not used here
        import modelopt.torch.quantization as mtq

    row = EIGHT_BITS[precision]
    layers = torch.nn.ModuleList()
    for product in products:
        columns, given = product.weight.shape
        layer = torch.nn.Linear(columns, given, bias=False)
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(product.weight.T))
        layers.append(layer)

    def show(module: torch.nn.Module) -> None:
        for batch in batches():
            for layer, read in zip(module.children(), batch, strict=True):
                layer(torch.from_numpy(np.array(read)))

    config = {**getattr(mtq, row.config), "algorithm": dict(row.algorithm)}
    # ModelOpt reports progress on standard output, where commands write JSON.
    with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        made = mtq.quantize(layers, config, show)
    return [_of_layer(layer, row) for layer in made]


def _of_layer(layer: Any, row: EightBits) -> Scales:
    evened = getattr(layer.input_quantizer, "pre_quant_scale", None)
    # One number per output column, or a scalar.
    largest = np.squeeze(layer.weight_quantizer.amax.detach().float().numpy())
    return Scales(
        np.ascontiguousarray(layer.weight.detach().float().numpy().T),
        np.maximum(largest, LEAST_SCALE) / row.largest,
        max(float(layer.input_quantizer.amax), LEAST_SCALE) / row.largest,
        None if evened is None else evened.detach().float().numpy().reshape(-1),
    )


def _quantize(model: onnx.ModelProto, node: onnx.NodeProto, scales: Scales, row: EightBits) -> None:
    """Append the Q/DQ nodes of a product's factors to the graph, and let the product read their outputs."""
    graph, name = model.graph, node.output[0]
    read = node.input[0]
    if scales.evened is not None:
        graph.initializer.append(numpy_helper.from_array(scales.evened, f"{name}_evened_by"))
        graph.node.append(_node("Mul", [read, f"{name}_evened_by"], f"{name}_evened"))
        read = f"{name}_evened"
    zero = np.zeros((), row.dtype)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scales.read_scale, np.float32), f"{name}_read_scale"),
            _constant(f"{name}_zero", zero, row),
        ]
    )
    scale = f"{name}_read_scale"
    graph.node.append(_node("QuantizeLinear", [read, scale, f"{name}_zero"], f"{name}_read_bits"))
    graph.node.append(_node("DequantizeLinear", [f"{name}_read_bits", scale], f"{name}_read"))
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    weight, factor = scales.weight, np.asarray(scales.weight_scale, np.float32)
    rounded = _rounded(weight / factor, row)
    graph.initializer.extend(
        [
            numpy_helper.from_array(factor, f"{name}_weight_scale"),
            _constant(f"{name}_weight_bits", rounded.T if turned else rounded, row),
        ]
    )
    bits = [f"{name}_weight_bits", f"{name}_weight_scale"]
    axis = {"axis": 0 if turned else 1} if factor.ndim else {}
    graph.node.append(_node("DequantizeLinear", bits, f"{name}_weight", **axis))
    node.input[0], node.input[1] = f"{name}_read", f"{name}_weight"


def _rounded(numbers: Array, row: EightBits) -> Array:
    """Round to nearest, ties to even, and saturate at the type's largest value."""
    clipped = np.clip(numbers, -row.largest, row.largest)
    return np.asarray((np.rint(clipped) if row.dtype is np.int8 else clipped).astype(row.dtype))


def _constant(name: str, values: Array, row: EightBits) -> onnx.TensorProto:
    raw = np.ascontiguousarray(values).tobytes()
    return TensorProto(name=name, data_type=row.number, dims=values.shape, raw_data=raw)


def _node(kind: str, inputs: Sequence[str], output: str, **settings: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=output, **settings)
