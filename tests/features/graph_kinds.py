"""The operators in random graphs: what each takes, how it is drawn, and what it makes.

Each operator is a :class:`Kind` in the literal table :data:`KINDS`; a test checks that the table covers every
compiled operator of ``tiercel_export.lowering.table``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drawn_frames import ColumnSpec
from hypothesis import strategies as st
from merlin.dag import Operator
from merlin.dag.ops import add_metadata as merlin_metadata
from merlin.dag.ops.rename import Rename as MerlinRename
from merlin.dag.ops.subgraph import Subgraph
from nvtabular import ops
from own_operator_draws import OPERATORS, OWN_KEYS, draw_number_operator, draw_text_operator
from scipy.sparse import coo_matrix

Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Type:
    """What a column holds: ``int``, ``float``, ``bool``, ``text``, ``row`` (of a matrix), or lists of it."""

    kind: str
    is_list: bool = False


Types = dict[str, Type]
Specs = dict[str, ColumnSpec]


@dataclass(frozen=True)
class Building:
    """What a kind builds its node from.

    Parameters
    ----------
    node
        The first source, restricted to the columns taken: a node, or a list of raw names.
    others
        The other sources, with all their columns.
    names
        As in :class:`Step`.
    folder
        For the files of a fit.
    specs
        The raw columns by name.
    """

    node: Any
    others: list[Any]
    names: tuple[Any, ...]
    folder: Path
    specs: Specs


# ------------------------------------------------------------------------------------- drawing parameters

SCALAR_VALUES = [0, 1, -3, 50, 0.5, 2.25, -1.0, 300, 2**40]


def number() -> st.SearchStrategy[Any]:
    return st.sampled_from(SCALAR_VALUES) | st.floats(-100, 100, width=32) | st.integers(-200, 200)


def draw_nothing(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return ()


def draw_fill(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    kinds = {column.kind for column in taken.values() if not column.is_list}
    value = draw(st.sampled_from(["", "a", "né"]) if kinds == {"text"} else number())
    return (0 if "bool" in kinds else value, draw(st.booleans()))


def draw_clip(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    bounds = st.tuples(number() | st.none(), number() | st.none()).filter(lambda both: both != (None, None))
    return tuple(draw(bounds))


def draw_out_dtype(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return (draw(st.sampled_from([None, None, "float32", "float64"])),)


def draw_boundaries(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    known = [[0, 1, 5], [-1.5, 0.5, 0.5, 40.0], [3], [9.5, 2.0, -4.0], [10, 0, -10], []]
    values = draw(st.sampled_from(known) | st.lists(number(), min_size=1, max_size=5).map(sorted))
    return (tuple(values),)


def draw_categorify(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    options = [
        {},
        {},
        {"freq_threshold": 2},
        {"freq_threshold": 4},
        {"max_size": 5},
        {"max_size": 3},
        {"dtype": "int32"},
        {"single_table": True},
        {"cat_cache": None},
        {"split_out": 2},
        {"num_buckets": 1},
    ]
    scalars = [name for name in taken if name in specs and not specs[name].is_list]
    if len(scalars) == len(taken) and draw(st.integers(0, 9)) == 0:
        return ({"vocabs": {name: tuple(dict.fromkeys(specs[name].values)) for name in scalars}},)
    return (draw(st.sampled_from(options)),)


def draw_joint(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    (options,) = draw_categorify(draw, taken, {})
    return ({**options, "encode_type": "joint"},)


def draw_combo(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    options = [{}, {}, {"freq_threshold": 2}, {"max_size": 5}, {"dtype": "int32"}, {"name_sep": "·"}]
    return ({**draw(st.sampled_from(options)), "encode_type": "combo"},)


def draw_statistics(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    known = ["count", "sum", "mean", "std", "var", "min", "max"]
    statistics = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
    return (*draw_targets(draw, taken, specs), tuple(statistics))


def draw_targets(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    free = [name for name in TARGETS if name not in taken] or TARGETS
    return (tuple(draw(st.lists(st.sampled_from(free), min_size=1, max_size=2, unique=True))),)


def draw_target_encoding(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    options = [{}, {"p_smooth": 0.5}, {"p_smooth": 0}, {"out_dtype": "float64"}, {"kfold": 3}]
    return (*draw_targets(draw, taken, specs), draw(st.sampled_from(options)))


def draw_table(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    """Draw the key columns, the table's keys, and its other columns."""
    on = tuple(taken)[: draw(st.integers(1, 2))]
    keys = [draw(st.lists(st.sampled_from(specs[name].values + specs[name].more), min_size=3)) for name in on]
    rows = tuple(dict.fromkeys(zip(*keys, strict=False)))
    others = draw(st.lists(st.sampled_from(sorted(JOINED)), min_size=1, unique=True))
    return (on, rows, tuple(others), draw(st.booleans()), draw(st.booleans()))


def draw_flag(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return (draw(st.booleans()),)


def draw_slice(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    """Draw start, end and the padding value; None means no padding."""
    start, end = draw(st.sampled_from([(2, None), (1, 3), (-2, None), (-3, -1), (-3, 2), (0, 5), (0, None)]))
    texts = all(column.kind == "text" for column in taken.values())
    pads = ["", "a", "né"] if texts else [0, -7, 0.5, 2**40]
    return (start, end, draw(st.none() | st.sampled_from(pads)))


def draw_cardinality(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return (draw(st.integers(1, 8)),)


def draw_matrix(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    seed, metric = draw(st.integers(0, 99)), draw(st.sampled_from(["tfidf", "cosine", "inner"]))
    return (seed, metric, draw(st.sampled_from(["float64", "float32"])))


def draw_inner(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    """Draw the chain of a nested graph."""
    chain = []
    for _ in range(draw(st.integers(1, 2))):
        able = [name for name in INNER if _takes_all(KINDS[name], taken)]
        name = draw(st.sampled_from(able))
        parameters = KINDS[name].draw(draw, taken, specs)
        chain.append((name, parameters))
        taken = KINDS[name].makes(taken, parameters)
    return (tuple(chain),)


def _takes_all(kind: Kind, taken: Types) -> bool:
    return sorted(taken) in [sorted(names) for names in takeable(kind, taken)]


def draw_rename(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return (draw(st.sampled_from(["postfix", "function"])), draw(st.sampled_from(["_x", "_é", " 2"])))


def draw_tag(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    return (draw(st.sampled_from(sorted(TAGGING))),)


TAGGING: dict[str, Callable[[], Any]] = {
    "merlin.AddMetadata": lambda: merlin_metadata.AddMetadata(tags=["x"], properties={"y": 1}),
    "merlin.AddTags": lambda: merlin_metadata.AddTags(["x"]),
    "merlin.AddProperties": lambda: merlin_metadata.AddProperties({"x": 1}),
    "merlin.TagAsUserID": merlin_metadata.TagAsUserID,
    "merlin.TagAsItemID": merlin_metadata.TagAsItemID,
    "merlin.TagAsUserFeatures": merlin_metadata.TagAsUserFeatures,
    "merlin.TagAsItemFeatures": merlin_metadata.TagAsItemFeatures,
    "nvtabular.AddMetadata": lambda: ops.AddMetadata(tags=["x"], properties={"y": 1}),
    "nvtabular.AddTags": lambda: ops.AddTags(["x"]),
    "nvtabular.AddProperties": lambda: ops.AddProperties({"x": 1}),
    "nvtabular.TagAsUserID": ops.TagAsUserID,
    "nvtabular.TagAsItemID": ops.TagAsItemID,
    "nvtabular.TagAsUserFeatures": ops.TagAsUserFeatures,
    "nvtabular.TagAsItemFeatures": ops.TagAsItemFeatures,
}


#: Targets of statistics and encodings: raw columns that each plan has.
TARGETS = ["i", "f"]

#: Rows of the feature matrix of ColumnSimilarity. NVTabular reads out of bounds for any other row.
MATRIX_ROWS = 6
ROWS = tuple(range(MATRIX_ROWS))

#: Columns of an external table: type and values.
JOINED: dict[str, tuple[Type, list[Any]]] = {
    "e int": (Type("int"), [1, -7, 2**40]),
    "e float": (Type("float"), [0.5, None, 1e300, -0.0]),
    "e text": (Type("text"), ["x", "", "é", None]),
    "e list": (Type("int", True), [[1, 2], [], [3]]),
    "e flag": (Type("bool"), [True, False]),
}


# ------------------------------------------------------------------------------- which columns it can take


def any_column(column: Type) -> bool:
    return True


def numbers(column: Type) -> bool:
    return column.kind in ("int", "float", "row") and not column.is_list


def lists(column: Type) -> bool:
    return column.is_list


def matrix_rows(column: Type) -> bool:
    return column.kind == "row"


def numbers_and_flags(column: Type) -> bool:
    return column.kind != "text" and not column.is_list


def numeric(column: Type) -> bool:
    """Return whether a column holds numbers or lists of numbers."""
    return column.kind != "text"


def scalars(column: Type) -> bool:
    return not column.is_list


# --------------------------------------------------------------------------------- the columns that it makes


def same(taken: Types, parameters: tuple[Any, ...]) -> Types:
    return dict(taken)


def floats(taken: Types, parameters: tuple[Any, ...]) -> Types:
    return {name: Type("float", column.is_list) for name, column in taken.items()}


def ids(taken: Types, parameters: tuple[Any, ...]) -> Types:
    return {name: Type("int", column.is_list) for name, column in taken.items()}


def filled(taken: Types, parameters: tuple[Any, ...]) -> Types:
    flags = {f"{name}_filled": Type("bool") for name in taken} if parameters[-1] else {}
    return {**taken, **flags}


def of_own(taken: Types, parameters: tuple[Any, ...]) -> Types:
    """Return the columns that one of our operators makes."""
    name, arguments, options = parameters
    operator = OPERATORS[name](*arguments, **options)
    kind = "text" if name in ("TextSlice", "TextCase", "TextStrip") or arguments == ("str",) else "float"
    return {f"{column}{suffix}": Type(kind) for column in taken for suffix in operator.suffixes}


def build_own(built: Building, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return built.node >> OPERATORS[name](*arguments, **options)


def draw_own(draw: Draw, taken: Types, specs: Specs) -> tuple[Any, ...]:
    if all(column.kind == "text" for column in taken.values()):
        return draw_text_operator(draw)
    return draw_number_operator(draw, [name for name in TARGETS if name not in taken])


def inner(taken: Types, parameters: tuple[Any, ...]) -> Types:
    for name, own in parameters[0]:
        taken = KINDS[name].makes(taken, own)
    return taken


def combined(taken: Types, parameters: tuple[Any, ...]) -> Types:
    # Groups are drawn after the parameters, so the name of the combined column is not known yet.
    return {}


def joined(taken: Types, parameters: tuple[Any, ...]) -> Types:
    return taken | {name: JOINED[name][0] for name in parameters[2]}


def renamed(taken: Types, parameters: tuple[Any, ...]) -> Types:
    return {rename(*parameters)(name): column for name, column in taken.items()}


def rename(how: str, word: str) -> Callable[[str], str]:
    return (lambda name: name + word) if how == "postfix" else (lambda name: word + name)


# ------------------------------------------------------------------------------------------------ building


def build_rename(built: Building, how: str, word: str) -> Any:
    if how == "postfix":
        return built.node >> (ops.Rename(postfix=word) if " " in word else MerlinRename(postfix=word))
    return built.node >> ops.Rename(f=rename(how, word))


def build_group(built: Building) -> Any:
    node = as_node(built.node)
    return node + list(built.others)


def build_join_groupby(built: Building, of: tuple[str, ...], statistics: tuple[str, ...]) -> Any:
    return built.node >> ops.JoinGroupby(
        cont_cols=list(of), stats=list(statistics), out_path=str(built.folder)
    )


def build_target_encoding(built: Building, targets: tuple[str, ...], options: dict[str, Any]) -> Any:
    return built.node >> ops.TargetEncoding(
        list(targets), **{"kfold": 1, "out_path": str(built.folder), **options}
    )


def build_join_external(
    built: Building,
    on: tuple[str, ...],
    keys: tuple[Any, ...],
    others: tuple[str, ...],
    named: bool,
    some: bool,
) -> Any:
    """Join a table whose keys have the dtypes of the raw columns, and their names or others."""
    on_ext = [f"key {name}" if named else name for name in on]
    table = pd.DataFrame(
        {
            name: key_series(built.specs[key], values)
            for name, key, values in zip(on_ext, on, zip(*keys, strict=True), strict=True)
        }
    )
    for name in others:
        values = JOINED[name][1]
        table[name] = pd.Series([values[row % len(values)] for row in range(len(table))])
    chosen = [*on_ext, *others] if some else None
    return built.node >> ops.JoinExternal(table, on=list(on), on_ext=on_ext, columns_ext=chosen)


def key_series(spec: ColumnSpec, values: tuple[Any, ...]) -> pd.Series:
    dtype = "float64" if spec.form == "floats" else spec.dtype
    return pd.Series(list(values), dtype=object if dtype == "text" else dtype)


def build_slice(built: Building, start: int, end: int | None, pad: Any) -> Any:
    padding = {} if pad is None else {"pad": True, "pad_value": pad}
    return built.node >> ops.ListSlice(start, end, **padding)


def build_drop(built: Building, least: int) -> Any:
    """Drop columns straight after Categorify: on other columns NVTabular's operator raises."""
    return categorify(built, {}) >> ops.DropLowCardinality(least)


def build_similarity(built: Building, seed: int, metric: str, dtype: str) -> Any:
    rng = np.random.default_rng(seed)
    dense = rng.random((MATRIX_ROWS, 4)) * (rng.random((MATRIX_ROWS, 4)) < 0.6)
    return built.node >> ops.ColumnSimilarity(coo_matrix(dense.astype(dtype)), metric=metric)


def build_subgraph(built: Building, chain: tuple[Any, ...]) -> Any:
    node: Any = list(built.names)
    for number, (name, parameters) in enumerate(chain):
        place = built.folder / str(number)
        place.mkdir()
        node = KINDS[name].build(Building(node, [], built.names, place, built.specs), *parameters)
    return built.node >> Subgraph(f"nested {built.folder.name}", node)


def as_node(node: Any) -> Any:
    """Turn a list of raw names into a node."""
    return node >> ops.AddMetadata() if isinstance(node, list) else node


def categorify(built: Building, options: dict[str, Any]) -> Any:
    if "vocabs" in options:
        options = {"vocabs": {name: pd.Series(list(v)) for name, v in options["vocabs"].items()}}
    return built.node >> ops.Categorify(out_path=str(built.folder), **options)


# -------------------------------------------------------------------------------------------- the operators


@dataclass(frozen=True)
class Kind:
    """How to draw and build one operator.

    Parameters
    ----------
    keys
        Operators of the lowering table, one of which the kind adds to the graph.
    takes
        Whether it takes a column of a given type.
    draw
        Draws its parameters, given the columns taken and the raw columns.
    makes
        The columns that it makes.
    build
        Makes the node, given the parameters.
    least
        How many columns it needs.
    others
        How many further sources it has.
    grouped
        Whether a group of columns is among its names.
    alike
        Whether its columns must be all text or all numbers.
    raw
        Whether it only takes raw columns.
    named
        Whether it only takes columns named like a raw column.
    """

    keys: frozenset[str]
    takes: Callable[[Type], bool]
    draw: Callable[[Draw, Types, Specs], tuple[Any, ...]]
    makes: Callable[[Types, tuple[Any, ...]], Types]
    build: Callable[..., Any]
    least: int = 1
    others: int = 0
    grouped: bool = False
    alike: bool = False
    raw: bool = False
    named: bool = False


def kind(keys: str, takes: Any, draw: Any, makes: Any, build: Any, **more: Any) -> Kind:
    return Kind(frozenset(keys.split()), takes, draw, makes, build, **more)


KINDS: dict[str, Kind] = {
    "select": kind("merlin.SelectionOp", any_column, draw_nothing, same, lambda b: as_node(b.node)),
    "subset": kind(
        "merlin.SubsetColumns", any_column, draw_nothing, same, lambda b: as_node(b.node)[list(b.names)]
    ),
    "concat": kind(
        "merlin.ConcatColumns",
        any_column,
        draw_nothing,
        same,
        lambda b: as_node(b.others[0]) + b.node,
        others=1,
    ),
    "minus": kind(
        "merlin.SubtractionOp",
        any_column,
        draw_nothing,
        same,
        lambda b: as_node(b.others[0]) - as_node(b.node),
        others=1,
    ),
    "group": kind("merlin.GroupingOp", any_column, draw_nothing, same, build_group, others=2),
    "tag": kind(" ".join(TAGGING), any_column, draw_tag, same, lambda b, name: b.node >> TAGGING[name]()),
    "rename": kind("merlin.Rename nvtabular.Rename", any_column, draw_rename, renamed, build_rename),
    "fill": kind(
        "nvtabular.FillMissing",
        any_column,
        draw_fill,
        filled,
        lambda b, value, flags: b.node >> ops.FillMissing(value, add_binary_cols=flags),
        alike=True,
    ),
    "clip": kind(
        "nvtabular.Clip",
        numbers,
        draw_clip,
        same,
        lambda b, low, high: b.node >> ops.Clip(min_value=low, max_value=high),
    ),
    "log": kind("nvtabular.LogOp", numeric, draw_nothing, floats, lambda b: b.node >> ops.LogOp()),
    "normalize": kind(
        "nvtabular.Normalize",
        numeric,
        draw_out_dtype,
        floats,
        lambda b, dtype: b.node >> ops.Normalize(out_dtype=dtype),
    ),
    "bucketize": kind(
        "nvtabular.Bucketize",
        numbers_and_flags,
        draw_boundaries,
        ids,
        lambda b, boundaries: b.node >> ops.Bucketize(list(boundaries)),
    ),
    "categorify": kind("nvtabular.Categorify", any_column, draw_categorify, ids, categorify),
    "joint": kind(
        "nvtabular.Categorify",
        any_column,
        draw_joint,
        ids,
        categorify,
        least=2,
        grouped=True,
        alike=True,
    ),
    "combo": kind("nvtabular.Categorify", scalars, draw_combo, combined, categorify, least=2, grouped=True),
    "join groupby": kind(
        "nvtabular.JoinGroupby", scalars, draw_statistics, combined, build_join_groupby, grouped=True
    ),
    "target encoding": kind(
        "nvtabular.TargetEncoding",
        scalars,
        draw_target_encoding,
        combined,
        build_target_encoding,
        grouped=True,
    ),
    "join external": kind(
        "nvtabular.JoinExternal", scalars, draw_table, joined, build_join_external, raw=True
    ),
    "median": kind(
        "nvtabular.FillMedian",
        numbers_and_flags,
        draw_flag,
        filled,
        lambda b, flags: b.node >> ops.FillMedian(add_binary_cols=flags),
    ),
    "min max": kind(
        "nvtabular.NormalizeMinMax",
        numbers,
        draw_out_dtype,
        floats,
        lambda b, dtype: b.node >> ops.NormalizeMinMax(out_dtype=dtype),
    ),
    "slice": kind("nvtabular.ListSlice", lists, draw_slice, same, build_slice, alike=True),
    "similarity": kind(
        "nvtabular.ColumnSimilarity",
        matrix_rows,
        draw_matrix,
        combined,
        build_similarity,
        least=2,
        grouped=True,
        raw=True,
    ),
    "reduce": kind(
        "nvtabular.ReduceDtypeSize", scalars, draw_nothing, same, lambda b: b.node >> ops.ReduceDtypeSize()
    ),
    "drop": kind(
        "nvtabular.DropLowCardinality",
        any_column,
        draw_cardinality,
        ids,
        build_drop,
    ),
    "count": kind(
        "nvtabular.ValueCount", any_column, draw_nothing, same, lambda b: b.node >> ops.ValueCount()
    ),
    "stats": kind("nvtabular.DataStats", any_column, draw_nothing, same, lambda b: b.node >> ops.DataStats()),
    "ours": kind(OWN_KEYS, scalars, draw_own, of_own, build_own, alike=True),
    "subgraph": kind("merlin.Subgraph", any_column, draw_inner, inner, build_subgraph, named=True),
}


class Own(Operator):
    """A custom operator that returns more columns than it declares."""

    def transform(self, col_selector, df):  # type: ignore[no-untyped-def]
        return df.assign(**dict.fromkeys(TARGETS, 0))


#: Refused operators: extra columns left in their frames may overwrite those of other operators.
REFUSED_KINDS: dict[str, Kind] = {
    "lambda": kind(
        "merlin.UDF", any_column, draw_nothing, same, lambda b: b.node >> ops.LambdaOp(lambda c: c)
    ),
    "hash": kind("nvtabular.HashBucket", scalars, draw_nothing, same, lambda b: b.node >> ops.HashBucket(7)),
    "cross": kind(
        "nvtabular.HashedCross", scalars, draw_nothing, combined, lambda b: b.node >> ops.HashedCross(7)
    ),
    "lag": kind(
        "nvtabular.DifferenceLag",
        numbers,
        draw_nothing,
        combined,
        lambda b: b.node >> ops.DifferenceLag(["t"], shift=1),
        raw=True,
    ),
    "own": kind("", any_column, draw_nothing, same, lambda b: b.node >> Own()),
}

#: Operators that a nested graph may contain.
INNER = ("fill", "median", "log", "normalize", "categorify", "rename", "tag")


def takeable(kind: Kind, types: Types) -> list[list[str]]:
    """Return the columns that the operator takes; text columns apart, if it cannot mix them with numbers."""
    names = [name for name, column in types.items() if kind.takes(column)]
    texts = [name for name in names if types[name].kind == "text"]
    sets = [texts, [name for name in names if name not in texts]] if kind.alike else [names]
    return [names for names in sets if len(names) >= kind.least]
