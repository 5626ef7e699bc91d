"""Compare a compiled feature program with NVTabular, bit for bit, wherever NVTabular gives an answer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from merlin.dag.node import iter_nodes

from tiercel_export.errors import UnsupportedOperator
from tiercel_export.lowering.expressions import INTEGER_DTYPES, REFUSED
from tiercel_export.workflow.cut import (
    CompiledProgram,
    WorkflowParts,
    compile_workflow,
    cut_workflow,
    trace,
)
from tiercel_export.workflow.frames import FrameOracle, columns_from_frame, oracle_frame
from tiercel_serving.columns import Column
from tiercel_serving.features import FeatureProgram, InputColumn, OutputColumn
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.spec import list_tensor

# NVTabular logs a traceback for each frame that it refuses, and the tests send many such frames.
logging.getLogger("merlin").disabled = True
for name in ("executors", "merlin.dag.executors"):
    logging.getLogger(name).disabled = True


@dataclass
class Pair:
    """A compiled program, its oracle, and the raw columns that each output depends on."""

    compiled: CompiledProgram
    oracle: FrameOracle | WholeWorkflow
    lineage: dict[str, frozenset[str]]
    #: Outputs whose dtype depends on the batch in NVTabular, and on the schema alone in the program.
    wide: frozenset[str] = field(default=frozenset())
    #: Rows on which NVTabular does not raise, such as those of the fit.
    anchor: pd.DataFrame | None = None
    #: The cut workflow that was compiled.
    cut: WorkflowParts | None = None

    @cached_property
    def program(self) -> FeatureProgram:
        return self.compiled.program

    @cached_property
    def answered(self) -> pd.DataFrame:
        """The anchor's rows in the oracle's form, with nulls and infinities replaced."""
        return replaced_cells(oracle_frame(self.anchor, self.program.inputs), self, _bad)[0]

    @cached_property
    def seen(self) -> dict[str, set[Any]]:
        """The set of values in each column of ``answered``."""
        return {name: set(map(_hashable, _flat(self.answered[name]))) for name in self.answered.columns}


def pair(workflow: Any, part: str = "user", **more: Any) -> Pair:
    cut = cut_workflow(workflow)
    lineage = {name: expression.inputs for name, expression in trace(cut.workflow).items()}
    return Pair(compile_workflow(cut, part), FrameOracle(cut, part), lineage, **more)


class Unanswered(Exception):
    """NVTabular raises whichever cells are replaced."""


class WholeWorkflow:
    """NVTabular's whole workflow as the oracle of some of its outputs.

    :class:`FrameOracle` removes the other parts' inputs from the graph by ``remove_inputs``, which breaks
    some graphs. Here they stay and are filled with rows of the fit, on which every operator works.
    """

    def __init__(self, workflow: Any, outputs: list[str], inputs: tuple[InputColumn, ...], fit: pd.DataFrame):
        self.outputs = outputs
        self._workflow = workflow
        self._inputs = [column.name for column in inputs]
        self._fit = fit

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        schema = self._workflow.input_schema
        below = np.arange(len(frame)) % len(self._fit)
        given = {}
        for name in self._fit.columns:
            column = (frame if name in self._inputs else self._fit.iloc[below])[name].reset_index(drop=True)
            dtype = schema[name].dtype.name if name in self._inputs else ""
            if column.dtype.kind == "i" and dtype in INTEGER_DTYPES:
                column = column.astype(dtype)
            given[name] = column
        return self._workflow.transform(pd.DataFrame(given))[self.outputs]


def without_folds(workflow: Any) -> Any:
    """Return a copy whose TargetEncoding applies no folds, as ``no_fold`` compiles it."""
    workflow = copy.deepcopy(workflow)
    for node in iter_nodes([workflow.output_node], flatten_subgraphs=True):
        if hasattr(node.op, "kfold"):
            node.op.kfold = 1
    return workflow


def pairs_of_compiled(
    workflow: Any, fit: pd.DataFrame, parts: dict[str, str], *, wide: bool = True
) -> tuple[list[Pair], list[UnsupportedOperator]]:
    """Return a pair for each part with all outputs that compile, and the refusals of the other outputs.

    Parameters
    ----------
    workflow
        A fitted workflow.
    fit
        The frame that it was fitted on.
    parts
        ``user`` or ``item`` by output column.
    wide
        Whether it has operators that may widen a column's dtype, depending on the batch.
    """
    traced = trace(workflow, target_encoding="no_fold")
    lineage = {name: expression.inputs for name, expression in traced.items()}
    refused = {name: dict(e.own)["error"] for name, e in traced.items() if e.op == REFUSED}
    for name in set(workflow.output_schema.column_names) - set(traced):
        lineage[name] = frozenset()
    cut = cut_workflow(
        workflow, parts={**parts, **dict.fromkeys(refused, "label")}, target_encoding="no_fold"
    )
    workflow = without_folds(workflow)
    pairs = []
    for part in ("user", "item"):
        outputs = cut.output_names(part)
        if outputs:
            compiled = compile_workflow(cut, part)
            oracle = WholeWorkflow(workflow, outputs, compiled.inputs, fit)
            widened = frozenset(outputs) if wide else frozenset()
            pairs.append(Pair(compiled, oracle, lineage, widened, fit, cut))
    return pairs, list(refused.values())


def answers_its_fit(pair: Pair, refused: Sequence[UnsupportedOperator] = ()) -> bool:
    """Return whether NVTabular answers the rows of the fit, once nulls and infinities are replaced.

    If so, also check that the product's oracle of the part agrees with the whole workflow. The oracle may
    raise only beside a refused operator, which raises on some of the values that stand in for its inputs.
    """
    try:
        expected = pair.oracle(pair.answered)
    except Exception:
        return False
    try:
        again = FrameOracle(pair.cut, pair.program.part)(pair.answered)
    except (KeyError, TypeError):
        if refused:
            return False
        raise
    # FillMissing widens a column beside a null in another one, which may belong to the other part.
    pd.testing.assert_frame_equal(again, expected, check_exact=True, check_dtype=False)
    return True


def check_rows_alone(pair: Pair, raw: pd.DataFrame) -> None:
    """Check that rows do not influence each other: half of a batch gives what it gives in the batch."""
    whole, half = (
        pair.program.packed(columns_from_frame(frame, pair.program.inputs), len(frame))
        for frame in (raw, raw.iloc[: len(raw) // 2])
    )
    for name, tensor in half.items():
        width = tensor.shape[1]
        assert_bits(name, whole[name][: len(tensor), :width].ravel(), tensor.ravel())


def check(pair: Pair, raw: pd.DataFrame, *, strict: bool = False) -> str:
    """Compare program and NVTabular on a frame.

    Returns ``equal`` if NVTabular answered; ``equal beside the fit`` if it answered with rows of the fit
    appended (it raises on a column that is null in every row); ``rest equal`` if it still raised, and all
    rows agree except those whose nulls and infinities had to be replaced for an answer; ``seen equal`` and
    ``known rows equal`` if unseen values, and unseen rows, had to be replaced too. With ``strict``, only
    ``equal`` is accepted.
    """
    frame = oracle_frame(raw, pair.program.inputs)
    columns = columns_from_frame(frame, pair.program.inputs)
    got = pair.program.run(columns, len(frame))
    assert set(got) == set(pair.oracle.outputs)
    check_packed(pair.program, columns, got, len(frame))
    check_packed_text(pair.program, columns, got, len(frame))
    if len(frame) == 0:
        for output in pair.program.outputs:
            assert len(got[output.name]) == 0
            assert got[output.name].values.dtype == ("O" if output.dtype == "bytes" else output.dtype)
        return "equal"
    try:
        outcome, expected, replaced = "equal", pair.oracle(frame), {}
    except Exception:
        if strict:
            raise
        outcome, expected, replaced = ask_beside_the_fit(pair, frame)
    for output in pair.program.outputs:
        name = output.name
        skip, null = np.zeros(len(frame), bool), np.zeros(len(frame), bool)
        for source in pair.lineage[name]:
            skip |= replaced.get(source, False)
            null |= frame[source].isna().to_numpy()
        flexible = null.any() or outcome != "equal" or name in pair.wide
        try:
            compare(name, expected[name], got[name], skip, flexible=flexible)
        except AssertionError:
            if strict or not compare_with_other_nulls(pair, output, frame, expected, got[name], skip, null):
                raise
    return outcome


def check_packed(program: FeatureProgram, columns: dict[str, Column], got: dict[str, Column], n: int) -> None:
    """Check that the packed tensors hold the outputs cast to int64 or float32, row by row."""
    packed = program.packed(columns, n)
    part = program.part
    for kind, dtype in (("cat", np.int64), ("num", np.float32)):
        names = [o.name for o in program.outputs if o.kind == kind and not o.is_list]
        assert (f"{part}_{kind}" in packed) == bool(names)
        for i, name in enumerate(names):
            assert packed[f"{part}_{kind}"].shape == (n, len(names))
            assert_bits(name, packed_values(got[name], kind, dtype), packed[f"{part}_{kind}"][:, i])
    for output in program.outputs:
        if output.is_list and output.kind != "raw":
            column, tensor = got[output.name], packed[list_tensor(part, output.name)]
            values = packed_values(column, output.kind, np.int64 if output.kind == "cat" else np.float32)
            assert tensor.dtype == values.dtype
            for i, row in enumerate(tensor):
                real = values[column.offsets[i] : column.offsets[i + 1]][: len(row)]
                assert_bits(output.name, real, row[: len(real)])
                assert not row[len(real) :].any()


def check_packed_text(
    program: FeatureProgram, columns: dict[str, Column], got: dict[str, Column], n: int
) -> None:
    """Check that packed text gives the same results as text in object arrays."""
    given = dict(columns)
    for name, column in columns.items():
        if column.values.dtype == object:
            text = Strings.of(column.values)
            given[name] = Column(text.blob, column.valid, column.offsets, column.row_valid, text.offsets)
    for name, again in program.run(given, n).items():
        for part in ("values", "valid", "offsets", "row_valid"):
            want, ours = getattr(got[name], part), getattr(again, part)
            assert (want is None) == (ours is None), (name, part)
            assert want is None or want.dtype == ours.dtype, (name, part)
            assert want is None or (want.tolist() if want.dtype == object else want.tobytes()) == (
                ours.tolist() if ours.dtype == object else ours.tobytes()
            ), (name, part)


def packed_values(column: Column, kind: str, dtype: type) -> np.ndarray:
    values = column.values
    if column.valid is not None:
        values = np.where(column.valid, values, 0 if kind == "cat" else np.nan)
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def ask_beside_the_fit(pair: Pair, frame: pd.DataFrame) -> tuple[str, pd.DataFrame, dict[str, np.ndarray]]:
    """Ask the oracle with rows of the fit appended, and with more and more cells replaced.

    Returns
    -------
    The outcome, the oracle's answer, and by raw column a mask of the replaced rows.
    """
    assert pair.anchor is not None, "NVTabular raised, and the test has no frame that it answers"
    fit, seen = pair.answered, pair.seen
    tries = {
        "equal beside the fit": lambda name, value: False,
        "rest equal": _bad,
        "seen equal": lambda name, value: _bad(name, value) or _hashable(value) not in seen[name],
        "known rows equal": None,
    }
    for outcome, stray in tries.items():
        known = replaced_rows(frame, fit, pair) if stray is None else replaced_cells(frame, pair, stray)
        asked, replaced = known
        together = pd.concat([asked.astype(object), fit.astype(object)], ignore_index=True)
        try:
            answer = pair.oracle(oracle_frame(together, pair.program.inputs)).iloc[: len(frame)]
        except Exception as error:
            raised = error
        else:
            return outcome, answer, replaced
    raise Unanswered from raised


def replaced_rows(
    frame: pd.DataFrame, fit: pd.DataFrame, pair: Pair
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the frame with the fit's first row in place of every row that the fit lacks."""
    scalars = [column.name for column in pair.program.inputs if not column.is_list]
    known = set(fit[scalars].itertuples(index=False, name=None))
    strange = np.array([row not in known for row in frame[scalars].itertuples(index=False, name=None)], bool)
    for marks in replaced_cells(frame, pair, _bad)[1].values():
        strange |= marks
    out = frame.astype(object)
    for at in np.flatnonzero(strange):
        out.iloc[at] = fit.iloc[0]
    return out, dict.fromkeys(frame.columns, strange)


def replaced_cells(
    frame: pd.DataFrame, pair: Pair, stray: Callable[[str, Any], bool]
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the frame with values of the fit in place of stray ones, and masks of the replaced rows."""
    out, replaced = {}, {}
    for column in pair.program.inputs:
        name, series = column.name, frame[column.name]
        rows = series.tolist()
        if column.is_list:
            marks = [row is None or any(stray(name, value) for value in row) for row in rows]
        else:
            marks = [stray(name, value) for value in rows]
        bad = np.array(marks, bool)
        if bad.any():
            replaced[name] = bad
            harmless = [] if column.is_list else _harmless(pair, name, column.dtype)
            values = [harmless if b else v for b, v in zip(bad, rows, strict=True)]
            dated = frame[name].dtype.kind == "M"
            series = pd.Series(values, dtype=frame[name].dtype if dated else object)
            if not column.is_list and not dated and column.dtype == "int64":
                # Beside a null the highest integers became the float 2**63, which int64 cannot hold.
                series = series.map(lambda value: min(value, 2**63 - 1025))
            if not column.is_list and not dated and column.dtype != "bytes":
                series = series.astype(column.dtype)
        out[name] = series
    return pd.DataFrame(out), replaced


def _harmless(pair: Pair, name: str, dtype: str) -> Any:
    known = [value for value in pair.anchor[name] if not pd.isna(value) and not _bad(name, value)]
    return known[0] if known else ("harmless" if dtype == "bytes" else 1)


def _flat(series: pd.Series) -> Iterable[Any]:
    for value in series:
        if isinstance(value, (list, np.ndarray)):
            yield from value
        else:
            yield value


def _hashable(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _bad(name: str, value: Any) -> bool:
    """Return whether NVTabular may raise on a value: null, NaN, ±inf, or a lone surrogate (not hashable)."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or (isinstance(value, (float, np.floating)) and not np.isfinite(value))


def compare(name: str, expected: pd.Series, got: Column, skip: np.ndarray, *, flexible: bool) -> None:
    if got.is_list:
        compare_lists(name, expected, got, skip)
        return
    want = expected.to_numpy()
    if got.values.dtype == np.object_:
        texts = [None if v is None or v != v else v.encode("utf-8", "surrogatepass") for v in want]
        valid = np.ones(len(texts), bool) if got.valid is None else got.valid
        ours = [v if ok else None for v, ok in zip(got.values.tolist(), valid, strict=True)]
        assert [t for t, s in zip(texts, skip, strict=True) if not s] == [
            t for t, s in zip(ours, skip, strict=True) if not s
        ], name
        return
    # A null makes an integer column float64 in NVTabular; otherwise the program's dtype may only be wider.
    wider = want.dtype == np.float64 or want.dtype == object or np.can_cast(want.dtype, got.values.dtype)
    # Booleans that are all null in a batch take the dtype of the fill value, such as the integer 0.
    wider |= got.values.dtype == np.bool_ and want.dtype.kind == "i"
    assert got.values.dtype == want.dtype or (flexible and wider), (
        f"{name}: {got.values.dtype}, NVTabular has {want.dtype}"
    )
    null = expected.isna().to_numpy()
    if got.values.dtype.kind != "f":
        ours_null = np.zeros(len(null), bool) if got.valid is None else ~got.valid
        assert (ours_null == null)[~skip].all(), name
        skip = skip | null
    assert_bits(name, held(name, want[~skip], got.values.dtype), got.values[~skip])


def compare_with_other_nulls(
    pair: Pair,
    output: OutputColumn,
    frame: pd.DataFrame,
    expected: pd.DataFrame,
    got: Column,
    skip: np.ndarray,
    null: np.ndarray,
) -> bool:
    """Compare where a null in the batch changes NVTabular's values in the other rows.

    A null makes its integer column float64, in which integers round, or do not overflow. So in a batch with
    nulls the other rows must equal what they are without them. A column that the program always holds in the
    wider dtype (``pair.wide``) may instead equal its value beside a null.

    Returns
    -------
    False if nulls cannot explain the difference.
    """
    name = output.name
    if (
        name in pair.wide
        and not got.is_list
        and got.values.dtype.kind in "iu"
        and expected[name].dtype == np.float64
    ):
        # Beside an unseen key an integer statistic is float64 too, which rounds beyond 2**53.
        rounded = np.where(valid_of(got), got.values.astype(np.float64), np.nan)
        try:
            compare(name, expected[name], Column(rounded), skip, flexible=True)
        except AssertionError:
            if not null.any() or null.all():
                raise  # otherwise the other rows may equal those without the null
        else:
            return True
    if null.any() and not null.all():
        compare(name, expected[name], got, skip | ~null, flexible=True)
        alone = frame[~null].reset_index(drop=True)
        _, again, replaced = ask_beside_the_fit(pair, alone)
        skip = np.zeros(len(alone), bool)
        for source in pair.lineage[name]:
            skip |= replaced.get(source, False)
        compare(name, again[name], rows_of(got, ~null), skip, flexible=True)
        return True
    if name in pair.wide and not null.any():
        below = pd.DataFrame({c.name: [[] if c.is_list else None] for c in pair.program.inputs})
        _, again, _ = ask_beside_the_fit(pair, pd.concat([frame.astype(object), below], ignore_index=True))
        compare(name, again[name].iloc[:-1], got, skip, flexible=True)
        return True
    return False


def valid_of(column: Column) -> np.ndarray:
    return np.ones(len(column.values), bool) if column.valid is None else column.valid


def rows_of(column: Column, keep: np.ndarray) -> Column:
    """Return the rows of a column where ``keep`` is True."""
    if column.offsets is None:
        return Column(column.values[keep], None if column.valid is None else column.valid[keep])
    elements = np.repeat(keep, np.diff(column.offsets))
    return Column(
        column.values[elements],
        None if column.valid is None else column.valid[elements],
        np.concatenate([[0], np.cumsum(np.diff(column.offsets)[keep])]),
        None if column.row_valid is None else column.row_valid[keep],
    )


def held(name: str, want: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return NVTabular's values cast to the program's dtype, which must hold each of them."""
    with np.errstate(all="ignore"):
        cast = want.astype(dtype)
        if dtype.kind == "f" and want.dtype.kind in "iu":
            return cast  # widened: integers beyond 2**53 go through float64
        same = (cast.astype(want.dtype) == want) | (want != want)
    assert same.all(), f"{name}: NVTabular's {want.dtype} {want[~same][:5].tolist()} do not fit {dtype}"
    return cast


def compare_lists(name: str, expected: pd.Series, got: Column, skip: np.ndarray) -> None:
    assert got.offsets is not None
    for i, row in enumerate(expected):
        if skip[i]:
            continue
        ours = got.values[got.offsets[i] : got.offsets[i + 1]]
        if isinstance(row, np.ndarray) and row.dtype == object:
            row = row.tolist()  # the form in which Parquet returns lists of text
        if isinstance(row, list) and None in row:
            valid = got.valid[got.offsets[i] : got.offsets[i + 1]] if got.valid is not None else ours == ours
            assert [v is None for v in row] == (~valid).tolist(), name
            row, ours = [v for v in row if v is not None], ours[valid]
        if isinstance(row, list) and got.values.dtype == np.object_:
            assert [v.encode("utf-8", "surrogatepass") for v in row] == list(ours), name
            continue
        if not isinstance(row, np.ndarray):  # a list that only passes through
            # NVTabular makes scalars of a column that is all null; here a null list is empty.
            row = np.array(row if isinstance(row, list) else [], got.values.dtype)
        elif len(row):
            assert row.dtype == ours.dtype, f"{name}: {ours.dtype}, NVTabular has {row.dtype}"
        assert len(row) == len(ours), name
        assert_bits(name, row.astype(ours.dtype), ours)


def assert_bits(name: str, want: np.ndarray, got: np.ndarray) -> None:
    if got.dtype.kind == "f":
        bits = f"i{got.dtype.itemsize}"
        same = (want.view(bits) == got.view(bits)) | (np.isnan(want) & np.isnan(got))
    else:
        same = want == got
    assert same.all(), (
        f"{name}: NVTabular {want[~same][:5].tolist()}, compiled {got[~same][:5].tolist()} "
        f"({(~same).sum()} of {len(same)} differ)"
    )
