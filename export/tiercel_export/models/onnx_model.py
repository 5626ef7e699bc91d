"""A dense model given as ONNX: a file, or a graph in memory.

It takes the place of a torch module. Its inputs are bound to tensors by name, as the parameters of
``forward`` are. It is read once: the compiled engine, the golden answers and the verification all use those
bytes, even if the file changes later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from tiercel_serving.spec import Array, TensorSpec

from ..errors import ExportInputError

#: Domain of an operator → the operator set that defines it. ONNX Runtime supports both sets by itself.
DOMAINS = {"": "ai.onnx", "ai.onnx": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml"}

#: The oldest operator set that ONNX Runtime guarantees to run.
OLDEST_OPSET = 7

#: Graphs with more bytes of weights than this do not fit one protobuf message, whose limit is 2 GiB.
MESSAGE_BYTES = 1_900_000_000


class OnnxModel:
    """A checked ONNX graph, with the inputs and the output of a stage.

    Parameters
    ----------
    given
        The path of an ONNX file, with its weights inside or beside it, or the graph itself.
    available
        Name → spec of every tensor that the stage can provide.
    output
        The stage's name for the output. A graph with several outputs must have one of this name; a single
        output may have any name.
    what
        The caller's name for the model, for messages.

    Raises
    ------
    ExportInputError
        The file can't be read, an operator or a type is unknown, weights are missing, NaN or infinite, an
        input is not a tensor of the stage or has another dtype or shape, or the batch axis is not dynamic.
    """

    def __init__(
        self, given: str | Path | onnx.ModelProto, available: Mapping[str, TensorSpec], output: str, what: str
    ) -> None:
        self._what = what if isinstance(given, onnx.ModelProto) else f"{what} ({given})"
        self.graph = self._read(given)
        self._check_operators()
        if not isinstance(given, onnx.ModelProto):
            self._load_weights(Path(given))
        self._check_weights()
        self.inputs = self._bound_inputs(available)
        self.output = self._named_output(output)
        del self.graph.graph.value_info[:]  # may hold shapes of a fixed batch
        self._check_graph()
        self._session = self._opened()

    @property
    def weight_count(self) -> int:
        """The number of its float weights, including those of trees, which are attributes of their node."""
        of_nodes = sum(len(one.floats) for node in self.graph.graph.node for one in node.attribute)
        return of_nodes + sum(
            int(np.prod(tensor.dims, dtype=np.int64))
            for tensor in self.graph.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        )

    def run(self, arrays: Mapping[str, Array]) -> Array:
        """Run the graph on its inputs ``[B, …]`` without ONNX Runtime's optimisations; return the output."""
        (result,) = self._session.run([self.output], {spec.name: arrays[spec.name] for spec in self.inputs})
        return np.asarray(result)

    def fix_output(self, shape: Sequence[int]) -> None:
        """Set the shape of the graph's output; ``shape`` excludes the batch axis."""
        _set_shape(self.graph.graph.output[0], shape)

    def _error(self, text: str) -> ExportInputError:
        return ExportInputError(f"{self._what}: {text}")

    def _read(self, given: str | Path | onnx.ModelProto) -> onnx.ModelProto:
        """Return a copy of the graph, with external weights not yet loaded."""
        if isinstance(given, onnx.ModelProto):
            model = onnx.ModelProto()
            model.CopyFrom(given)
        else:
            try:
                model = onnx.load(str(given), load_external_data=False)
            except FileNotFoundError:
                raise self._error("there is no such file; name an ONNX file or give a torch module") from None
            except Exception as error:  # protobuf's errors for a file that is not ONNX
                raise self._error(
                    f"expected an ONNX file, but it can't be read as one ({error or type(error).__name__}); "
                    "it may be cut short: export it again"
                ) from error
        if not model.graph.node:
            raise self._error("expected an ONNX graph, but it has no nodes; export it again")
        return model

    def _check_operators(self) -> None:
        """Refuse operators and operator sets that ONNX Runtime does not support."""
        model = self.graph
        opsets = {DOMAINS.get(one.domain, one.domain): one.version for one in model.opset_import}
        newest = onnx.defs.onnx_opset_version()
        opset = opsets.get("ai.onnx", newest)
        if not OLDEST_OPSET <= opset <= newest:
            raise self._error(
                f"expected an operator set of {OLDEST_OPSET} to {newest}, got {opset}; export it again with "
                "opset 18"
            )
        local = {(function.domain, function.name) for function in model.functions}
        foreign, unknown = set(), set()
        for node in all_nodes(model):
            if (node.domain, node.op_type) in local:
                continue
            if node.domain not in DOMAINS:
                foreign.add(f"{node.domain}.{node.op_type}")
            elif not _defined(node, opsets):
                unknown.add(node.op_type)
        if foreign or unknown:
            raise self._error(
                f"expected operators of ONNX, got {', '.join(sorted(foreign | unknown))} (operator set "
                f"{opset}); write those layers with plain operations, or export with another opset"
            )

    def _load_weights(self, path: Path) -> None:
        """Load the external weights, which are stored in files beside the ONNX file."""
        names = sorted(
            {
                entry.value
                for tensor in self.graph.graph.initializer
                if external_data_helper.uses_external_data(tensor)
                for entry in tensor.external_data
                if entry.key == "location"
            }
        )
        try:
            external_data_helper.load_external_data_for_model(self.graph, str(path.parent))
        except Exception as error:
            raise self._error(
                f"its weights lie in {', '.join(names)} beside it, which can't be read ({error}); keep those "
                "files together as they were exported"
            ) from error

    def _check_weights(self) -> None:
        for tensor in self.graph.graph.initializer:
            try:
                values = numpy_helper.to_array(tensor)
            except Exception as error:
                raise self._error(
                    f"its weight {tensor.name!r} can't be read ({error}); its weights are not those that it "
                    "was exported with: export it again"
                ) from error
            wrong = int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0
            if wrong:
                raise self._error(
                    f"{wrong} of the {values.size} numbers of its weight {tensor.name!r} are NaN or "
                    "infinite; the training diverged: train again with a lower learning rate"
                )

    def _bound_inputs(self, available: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        """Check the graph's inputs against the tensors of the same names, and fix all axes but the batch."""
        graph = self.graph.graph
        weights = {tensor.name for tensor in graph.initializer}
        for place in reversed(range(len(graph.input))):
            if graph.input[place].name in weights:  # files before IR version 4 list weights as inputs
                del graph.input[place]
        here = ", ".join(sorted(available))
        unknown = [put.name for put in graph.input if put.name not in available]
        if unknown or not graph.input:
            came = f"inputs {', '.join(map(repr, unknown))}" if unknown else "no input"
            raise self._error(
                f"expected inputs named after tensors of this stage, got {came}; available here: {here}; "
                "name them with input_names when you export"
            )
        for put in graph.input:
            self._bind(put, available[put.name])
        return tuple(available[put.name] for put in graph.input)

    def _bind(self, put: onnx.ValueInfoProto, spec: TensorSpec) -> None:
        kind = put.type.tensor_type
        wanted = helper.np_dtype_to_tensor_dtype(np.dtype(spec.numpy_dtype))
        if kind.elem_type != wanted:
            raise self._error(
                f"input {put.name!r}: expected {spec.dtype}, got {_type_name(kind.elem_type)}; cast it "
                "inside the graph"
            )
        if kind.HasField("shape"):
            came = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]
            if came and isinstance(came[0], int):
                raise self._error(
                    f"input {put.name!r}: expected a dynamic batch as axis 0, got {came}, whose axis 0 is "
                    f"always {came[0]}; export it with dynamic_axes={{{put.name!r}: {{0: 'batch'}}}} (or "
                    "dynamic_shapes)"
                )
            sizes = zip(came[1:], spec.dims, strict=False)
            fits = len(came) == len(spec.dims) + 1
            if not fits or any(isinstance(size, int) and size != dim for size, dim in sizes):
                raise self._error(
                    f"input {put.name!r}: expected {['B', *spec.dims]} as this recommender has it, got "
                    f"{came}; export it with those sizes, or leave the axes dynamic"
                )
        _set_shape(put, spec.dims)

    def _named_output(self, wanted: str) -> str:
        """Reduce the graph to one output with the stage's name, and return that name."""
        graph = self.graph.graph
        names = [put.name for put in graph.output]
        if len(names) != 1 and wanted not in names:
            raise self._error(
                f"expected one output, or one of them called {wanted!r}, got {names}; name the outputs with "
                "output_names when you export"
            )
        name = names[0] if len(names) == 1 else wanted
        for place in reversed(range(len(names))):
            if names[place] != name:
                del graph.output[place]
        put = graph.output[0]
        if put.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise self._error(
                f"output {name!r}: expected float32, got {_type_name(put.type.tensor_type.elem_type)}; cast "
                "it inside the graph"
            )
        # The declared shape is dropped; the real one is found by running the graph.
        rank = len(put.type.tensor_type.shape.dim) or 2
        _set_shape(put, (None,) * (rank - 1))
        if name == wanted:
            return name
        taken = {value for node in all_nodes(self.graph) for value in (*node.input, *node.output)}
        if wanted in taken:
            raise self._error(
                f"its output is {name!r}, and {wanted!r} is another tensor of the graph; call the output "
                f"{wanted!r} when you export"
            )
        graph.node.append(helper.make_node("Identity", [name], [wanted], name=f"as_{wanted}"))
        put.name = wanted
        return wanted

    def _check_graph(self) -> None:
        try:
            if self._bytes() < MESSAGE_BYTES:
                onnx.checker.check_model(self.graph)
        except onnx.checker.ValidationError as error:
            first = str(error).strip().splitlines()[0]
            raise self._error(f"expected a valid ONNX graph, but {first}; export it again") from error

    def _bytes(self) -> int:
        return sum(len(tensor.raw_data) for tensor in self.graph.graph.initializer)

    def _opened(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # The oracle runs the graph as written; the served engine may be optimised and is compared with it.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        source: str | bytes
        if self._bytes() < MESSAGE_BYTES:
            source = self.graph.SerializeToString()
        else:
            self._folder = tempfile.TemporaryDirectory()
            source = str(Path(self._folder.name) / "model.onnx")
            copy = onnx.ModelProto()
            copy.CopyFrom(self.graph)
            onnx.save_model(copy, source, save_as_external_data=True, location="model.onnx.data")
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise self._error(
                f"ONNX Runtime {onnxruntime.__version__} can't open it ({str(error).strip()}); write that "
                "layer with other operations, or export with opset 18"
            ) from error


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, including those of local functions, branches and loops."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for one in node.attribute:
            for graph in (one.g, *one.graphs):
                waiting.extend(graph.node)


def _defined(node: onnx.NodeProto, opsets: Mapping[str, int]) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(DOMAINS[node.domain], 1)
    try:
        onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return False
    return True


def _type_name(number: int) -> str:
    if not number:
        return "no tensor"
    return "text" if number == TensorProto.STRING else str(helper.tensor_dtype_to_np_dtype(number))


def _set_shape(put: onnx.ValueInfoProto, dims: Sequence[int | None]) -> None:
    shape = put.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = "batch"
    for size in dims:
        dim = shape.dim.add()
        if size is not None:
            dim.dim_value = size
