"""The part of the HTML report on how figures grow with the batch, the accuracy and the release's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .plots import Series, lines

#: The sizes of a release that figures are plotted over: a key of the result's ``release`` → its label.
SIZES: Mapping[str, str] = {
    "items": "items",
    "users": "users",
    "candidates": "candidates that are retrieved (N)",
    "kept": "candidates that are ranked (K)",
}
#: A key of the scale benchmark's answers → its label.
ANSWERS: Mapping[str, str] = {"one": "one user", "batch": "64 users", "heavy": "64 users, one of them heavy"}


def growth_sections(document: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the HTML sections for which the results have data.

    Parameters
    ----------
    document
        A result of ``tiercel bench --save``.
    others
        Results of other releases, or of ``python -m benchmarks.scale --save``.
    """
    of_bench = [document, *(one for one in others if "sizes" not in one)]
    sections = [*_batches(document), *_indexes(document), *_sizes(of_bench)]
    for one in others:
        if "sizes" in one:
            sections += _scale(one)
    return sections


def _batches(document: Mapping[str, Any]) -> list[str]:
    batches = document.get("growth", {}).get("batches", {})
    if not batches:
        return []
    series = {"stages in one process": [(float(users), us) for users, us in batches.items()]}
    return _section("Growth with the batch", lines(series, "users in one batch", "µs a user", begin=None))


def _indexes(document: Mapping[str, Any]) -> list[str]:
    sections = []
    for source, searched in document.get("growth", {}).get("indexes", {}).items():
        drawn = _accuracy((one["index"], one["recall"], one["us"]) for one in searched)
        title = f"Accuracy of an index against latency: source {source}"
        sections += _section(title, drawn, "On the vectors of the release's items, one query at a time.")
    return sections


def _accuracy(searched: Iterable[tuple[str, float, float]]) -> str:
    series = _by_name((index, recall, us) for index, recall, us in searched)
    if not series:
        return ""
    least = min(recall for line in series.values() for recall, _ in line)
    return lines(series, "share of the exact best that is found", "µs a search", begin=min(least, 0.99))


def _sizes(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a plot over each size in which the releases differ."""
    sections = []
    for key, words in SIZES.items():
        sized = sorted(
            ((float(one["release"][key]), one) for one in documents if key in one.get("release", {})),
            key=lambda pair: pair[0],
        )
        if len({size for size, _ in sized}) < 2:
            continue
        points = [("bare", size, one["bare"]["p50_us"] / 1000) for size, one in sized]
        for size, one in sized:
            points += [
                (name, size, measured["p50_us"] / 1000)
                for name, measured in one["served"].get("1", {}).items()
            ]
        drawn = lines(_by_name(points), words, "p50, ms, one caller", begin=None)
        others = [name for name in SIZES if len({one["release"].get(name) for _, one in sized}) > 1]
        note = f"The releases differ in {', '.join(others)}, and what else their recipes say."
        sections += _section(f"Growth with {words}", drawn, note)
    return sections


def _scale(document: Mapping[str, Any]) -> list[str]:
    sizes = sorted(document["sizes"].values(), key=lambda one: one["items"])
    answers = _by_name(
        (words, float(one["items"]), one["answers"][key])
        for one in sizes
        for key, words in ANSWERS.items()
        if key in one["answers"]
    )
    note = "Made-up catalogues of `python -m benchmarks.scale`, in one process."
    sections = _section("Scale: answers", lines(answers, "items", "µs a user", begin=None), note)
    for one in sizes:
        searched = [s for s in one["searches"] if s["mask"] == "none" and not s["refused"]]
        drawn = _accuracy((s["index"], s["recall"], s["us"]) for s in searched)
        title = f"Scale: accuracy of an index against latency, {one['items']:,} items"
        sections += _section(title, drawn, "Each as an export would serve it, nothing masked.")
    return sections


def _section(title: str, drawn: str, note: str = "") -> list[str]:
    said = f"<p class='dim'>{escape(note)}</p>" if note else ""
    return [f"<h2>{escape(title)}</h2>{said}{drawn}"] if drawn else []


def _by_name(points: Iterable[tuple[str, float, float]]) -> Series:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in points:
        series.setdefault(name, []).append((x, y))
    return series
