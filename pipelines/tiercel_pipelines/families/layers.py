"""Layers that the model families share, made of operators that every engine supports.

When exported, they are Embedding (Gather), matrix products, comparisons and reductions only: no EmbeddingBag,
NonZero or OneHot, and no shape that depends on a value.

Category id 0 is padding, 1 null, 2 out of vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Problem
from tiercel_serving.spec import Arrays

from ..arrays.inputs import Side

#: Category ids that name no category: padding, null, out of vocabulary.
PAD_ID, NULL_ID, UNKNOWN_ID = 0, 1, 2

#: Normalised numbers are clamped to this magnitude, so that outliers do not dominate.
NUMBER_LIMIT = 10.0

#: Rows that go through a model at once.
CHUNK = 1024


class PackedModule(nn.Module):
    """A module over packed tensors, whose ``forward`` names them as parameters.

    Which tensors there are depends on the recipe's columns, so a subclass implements :meth:`compute` over
    a mapping, and :func:`with_inputs` gives it a ``forward`` whose signature names exactly its tensors.
    An exporter reads only that signature.
    """

    #: The parameters of ``forward``, in order.
    input_names: tuple[str, ...] = ()

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute the output from named tensors."""
        raise NotImplementedError


Module = TypeVar("Module", bound=PackedModule)


def with_inputs(kind: type[Module], names: Sequence[str]) -> type[Module]:
    """Return a subclass of ``kind`` whose ``forward`` has the packed tensors ``names`` as parameters."""
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    signature = inspect.Signature(parameters)

    def forward(self: PackedModule, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.compute(signature.bind(*args, **kwargs).arguments)

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[this, *parameters])  # type: ignore[attr-defined]
    members = {"forward": forward, "input_names": tuple(names), "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), members)


def run_module(module: PackedModule, arrays: Arrays, rows: int = CHUNK) -> npt.NDArray[np.float32]:
    """Run a module on NumPy arrays, ``rows`` at a time, without gradients and in evaluation mode."""
    training = module.training
    module.eval()
    named = {name: arrays[name] for name in module.input_names}
    length = len(next(iter(named.values())))
    parts = []
    with torch.inference_mode():
        for start in range(0, length, rows):
            chunk = {name: torch.from_numpy(array[start : start + rows]) for name, array in named.items()}
            parts.append(module(**chunk).numpy())
    module.train(training)
    return np.concatenate(parts)


class SideEncoder(nn.Module):
    """Embeds the columns of one side, each into a vector of the same width.

    Works on any leading axes: ``[B]`` for a user or an item, ``[B, K]`` for candidates. ``width`` is E,
    ``spread`` the standard deviation of the initial embeddings.
    """

    def __init__(self, side: Side, width: int, *, spread: float = 0.01):
        super().__init__()
        self.side = side
        self.tables = nn.ModuleList(embedding(column.cardinality, width, spread) for column in side.cat)
        self.list_tables = nn.ModuleList(
            embedding(column.cardinality, width, spread)
            for column in side.lists
            if column.cardinality is not None
        )
        self.number_count = len(side.num) + sum(column.cardinality is None for column in side.lists)

    @property
    def field_count(self) -> int:
        """Number of vectors that :meth:`fields` returns."""
        return len(self.tables) + len(self.list_tables)

    def fields(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return one vector ``[..., E]`` for each categorical column and list of categories."""
        found = []
        if self.side.cat:
            ids = tensors[f"{self.side.part}_cat"]
            found = [table(ids[..., place]) for place, table in enumerate(self.tables)]
        listed = [column for column in self.side.lists if column.cardinality is not None]
        for column, table in zip(listed, self.list_tables, strict=True):
            found.append(mean_of_list(table, tensors[self.side.list_tensor(column)]))
        return found

    def numbers(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return a list of one tensor ``[..., F]``, all numbers with nulls as 0 (their mean), or of none."""
        found = [tensors[f"{self.side.part}_num"]] if self.side.num else []
        # A sum, not a mean: padding adds nothing to it, regardless of its length.
        found.extend(
            tensors[self.side.list_tensor(column)].sum(dim=-1, keepdim=True)
            for column in self.side.lists
            if column.cardinality is None
        )
        if not found:
            return []
        numbers = torch.cat(found, dim=-1)
        numbers = torch.where(torch.isnan(numbers), 0.0, numbers)
        return [numbers.clamp(-NUMBER_LIMIT, NUMBER_LIMIT)]


def embedding(cardinality: int, width: int, spread: float) -> nn.Embedding:
    """Return an embedding table whose rows for padding, null and unknown start at zero.

    Such an id then adds nothing, instead of noise, if training never sees it.
    """
    table = nn.Embedding(cardinality, width)
    with torch.no_grad():
        table.weight.normal_(std=spread)
        table.weight[: UNKNOWN_ID + 1] = 0
    return table


def mean_of_list(table: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean embedding ``[..., E]`` of each padded list ``[..., L]``; zeros for an empty one."""
    real = ids > PAD_ID
    return sum_of_real([table], [ids], real) / real.to(torch.float32).sum(-1, True).clamp(min=1.0)


def pool_history(tables: Sequence[nn.Module], history_cat: Tensor, history_length: Tensor) -> Tensor:
    """Add up the embeddings of the items of a history and divide by the root of its length: ``[B, E]``.

    The root is a compromise between the sum, in which long histories dominate everything else, and the
    mean, in which they count no more than short ones. There is one table for each of the H columns of
    ``history_cat [B, L, H]`` (int64 ids, left aligned); ``history_length [B, 1]`` is its number of items.
    """
    places = torch.arange(history_cat.shape[1], device=history_cat.device)
    total = sum_of_real(tables, history_cat.unbind(-1), places.unsqueeze(0) < history_length)
    return total / history_length.to(torch.float32).clamp(min=1.0).sqrt()


def sum_of_real(tables: Sequence[nn.Module], columns: Sequence[Tensor], real: Tensor) -> Tensor:
    """Add up the embeddings ``[..., E]`` of the real ids of some columns ``[..., L]``, each with its table.

    Training visits only the positions where ``real [..., L]`` is True: most of a batch of histories is
    padding, whose gradients would cost as much as the others. The exported model gathers all positions, and
    adds up the real ones with one matrix product.
    """
    if not all(table.training and isinstance(table, nn.Embedding) for table in tables):
        vectors = tables[0](columns[0])
        for table, ids in zip(tables[1:], columns[1:], strict=True):
            vectors = vectors + table(ids)
        return torch.matmul(real.to(torch.float32).unsqueeze(-2), vectors).squeeze(-2)
    lengths = real.sum(-1)
    offsets = lengths.flatten().cumsum(0) - lengths.flatten()
    sums = [
        F.embedding_bag(ids[real], table.weight, offsets, mode="sum", sparse=table.sparse)
        for table, ids in zip(tables, columns, strict=True)
        if isinstance(table, nn.Embedding)
    ]
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    return total.reshape(*lengths.shape, -1)


def hidden_layers(inputs: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Return linear layers with ReLU and dropout after each."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers)


def linear_of_parts(layer: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """Return ``layer(torch.cat(parts, -1))`` for parts ``[…, n]`` whose other axes broadcast.

    Each part is multiplied in its own shape: a part that depends only on the user, ``[B, 1, n]``, is
    multiplied once rather than once per candidate.
    """
    weights = torch.split(layer.weight, [part.shape[-1] for part in parts], dim=1)
    products = [F.linear(part, weight) for part, weight in zip(parts, weights, strict=True)]
    total = products[0] if layer.bias is None else products[0] + layer.bias
    for product in products[1:]:
        total = total + product
    return total


def zero_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer whose weights are 0, so that it adds nothing until it is trained."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def wrong_widths(settings: object, *names: str) -> Iterator[Problem]:
    """Yield a problem for each of the settings' fields that does not hold the widths of hidden layers."""
    for name in names:
        widths = getattr(settings, name)
        if not all(COUNT.holds(width) for width in widths):
            problem = f"expected the widths of hidden layers, got {widths!r}"
            yield Problem(name, problem, "write a tuple such as (128, 64)")
