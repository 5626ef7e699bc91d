"""Inputs of models: the packed columns of both sides, and how many categories each has."""

from __future__ import annotations

import msgspec

from tiercel_serving.spec import list_tensor


class CategoryColumn(msgspec.Struct, frozen=True):
    """A categorical scalar column.

    Parameters
    ----------
    name
        The workflow's output column.
    cardinality
        One more than the largest id.
    vocabulary
        Whether the ids are those of a vocabulary, with null and out-of-vocabulary ids; False for
        buckets.
    """

    name: str
    cardinality: int
    vocabulary: bool = True


class ListColumn(msgspec.Struct, frozen=True):
    """A list column; ``cardinality`` is None for a list of numbers."""

    name: str
    cardinality: int | None


class Side(msgspec.Struct, frozen=True):
    """The packed columns of one side, in their packed order.

    Parameters
    ----------
    part
        ``user`` or ``item``, the prefix of the tensors' names.
    cat, num, lists
        Columns of ``<part>_cat`` and ``<part>_num``, and list columns, each of which is its own tensor.
    """

    part: str
    cat: tuple[CategoryColumn, ...] = ()
    num: tuple[str, ...] = ()
    lists: tuple[ListColumn, ...] = ()

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the packed tensors that this side has."""
        scalars = ((f"{self.part}_cat", self.cat), (f"{self.part}_num", self.num))
        return (
            *(name for name, columns in scalars if columns),
            *(self.list_tensor(column) for column in self.lists),
        )

    @property
    def cardinalities(self) -> dict[str, int]:
        """How many categories each categorical column and list has."""
        lists = {column.name: column.cardinality for column in self.lists if column.cardinality is not None}
        return {column.name: column.cardinality for column in self.cat} | lists

    def list_tensor(self, column: ListColumn) -> str:
        """Return the name of a list column's packed tensor."""
        return list_tensor(self.part, column.name)


class ModelInputs(msgspec.Struct, frozen=True):
    """The inputs that the models of one run may use; a model is loaded from its settings and these.

    Parameters
    ----------
    user, item
        Columns of both sides.
    history
        The H item columns whose ids make ``history_cat [B, L, H]``; empty for no history.
    sources
        Number of candidate sources.
    """

    user: Side
    item: Side
    history: tuple[str, ...] = ()
    sources: int = 1

    @property
    def user_names(self) -> tuple[str, ...]:
        """Names of the user's packed tensors, and of the history's if there is one."""
        history = ("history_cat", "history_length") if self.history else ()
        return (*self.user.tensor_names, *history)
