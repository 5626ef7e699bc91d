"""Formats of a placement: text, an SVG picture, and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

from ..spec import TensorSpec
from .placement import ANSWER, HOST, Copy, Hop, PlacedModel, PlacedStage, Placement, bytes_a_user, is_sized

#: Columns of a line of text.
WIDTH = 110

#: Sizes in pixels: the picture's width, a line's height, and the space between and inside of boxes.
_WIDE, _LINE, _GAP, _PAD = 860, 18, 34, 10

#: Characters that fit into a line of the picture.
_LETTERS = 118

#: Device → fill and edge colours of a stage's box.
_COLOURS = {HOST: ("#eef4ff", "#5b7db1"), "cuda": ("#eefbea", "#4f9a3a")}


def title(placement: Placement) -> str:
    """Return a summary of a placement in one line."""
    counts = ((len(placement.models), "model"), (len(placement.hops), "hop"), (len(placement.copies), "copy"))
    said = ", ".join(_count(number, what) for number, what in counts)
    return f"{placement.name}, {placement.layout}, target {placement.target}: {said}"


def as_text(placement: Placement) -> str:
    """Return the graph as text: each model with its incoming hops, its stages and their copies."""
    lines = [title(placement)]
    for model in placement.models:
        lines += ["", f"{model.name}  ({_backend(model)})"]
        lines += [part for line in _incoming(placement, model.name) for part in _wrapped(line)]
        for stage in model.stages:
            lines.append(f"  ■ {_stage(stage)}")
            copies = (copy for copy in placement.copies if copy.stage == stage.name)
            lines += [part for copy in copies for part in _wrapped(_copy(copy), "      ")]
    lines += ["", ANSWER]
    lines += [part for line in _incoming(placement, ANSWER) for part in _wrapped(line)]
    return "\n".join(lines)


def as_document(placement: Placement) -> dict[str, Any]:
    """Return the graph as JSON."""
    return {
        "name": placement.name,
        "target": placement.target,
        "layout": placement.layout,
        "models": [
            {
                "name": model.name,
                "backend": model.backend,
                "instance_kind": model.instance_kind,
                "stages": [{"name": s.name, "by": s.by, "device": s.device} for s in model.stages],
            }
            for model in placement.models
        ],
        "hops": [{"from": hop.source, "to": hop.to, **_tensors(hop.tensors)} for hop in placement.hops],
        "copies": [
            {"stage": copy.stage, "to": "device" if copy.to_device else "host", **_tensors(copy.tensors)}
            for copy in placement.copies
        ],
    }


def as_svg(placement: Placement) -> str:
    """Return the graph as an SVG picture, from the request at the top to the answer at the bottom."""
    parts: list[str] = []
    y = _PAD + _LINE
    parts.append(_text(_PAD, y, title(placement), "bold"))
    y += _PAD
    for model in placement.models:
        y = _arrows(parts, y, [*_incoming(placement, model.name)])
        y = _box(parts, y, placement, model)
    y = _arrows(parts, y, [*_incoming(placement, ANSWER)])
    parts.append(_text(_WIDE // 2, y + _LINE, ANSWER, "bold", anchor="middle"))
    height = y + 2 * _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{height}" '
        f'viewBox="0 0 {_WIDE} {height}" font-family="monospace" font-size="12">\n'
        f'<rect width="{_WIDE}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _box(parts: list[str], y: int, placement: Placement, model: PlacedModel) -> int:
    """Add a model's box, and return the y coordinate of its end."""
    rows: list[tuple[PlacedStage, list[str]]] = []
    for stage in model.stages:
        copies = (copy for copy in placement.copies if copy.stage == stage.name)
        rows.append((stage, [part for copy in copies for part in _wrapped(_copy(copy), "  ", _LETTERS - 8)]))
    inner = sum((1 + len(lines)) * _LINE + _PAD for _, lines in rows)
    height = inner + _LINE + 2 * _PAD
    parts.append(_rectangle(_PAD, y, _WIDE - 2 * _PAD, height, "#f7f7f7", "#555555"))
    parts.append(_text(2 * _PAD, y + _LINE, f"{model.name}  ({_backend(model)})", "bold"))
    y += _LINE + _PAD
    for stage, lines in rows:
        tall = (1 + len(lines)) * _LINE + _PAD // 2
        fill, edge = _COLOURS.get(stage.device, _COLOURS[HOST])
        parts.append(_rectangle(2 * _PAD, y, _WIDE - 4 * _PAD, tall, fill, edge))
        parts.append(_text(3 * _PAD, y + _LINE - 3, _stage(stage)))
        for number, line in enumerate(lines, 1):
            parts.append(_text(3 * _PAD, y + (number + 1) * _LINE - 3, line, fill="#a33b00"))
        y += tall + _PAD // 2
    return y + _PAD


def _arrows(parts: list[str], y: int, lines: Sequence[str]) -> int:
    """Add a downward arrow with its tensors beside it, and return the y coordinate of its end."""
    wrapped = [part for line in lines for part in _wrapped(line, "", _LETTERS - 6)]
    height = max(_GAP, len(wrapped) * _LINE + _PAD)
    parts.append(f'<line x1="24" y1="{y}" x2="24" y2="{y + height - 4}" stroke="#333333"/>')
    parts.append(f'<path d="M20 {y + height - 8} L24 {y + height} L28 {y + height - 8} Z" fill="#333333"/>')
    for number, line in enumerate(wrapped):
        parts.append(_text(36, y + (number + 1) * _LINE - 2, line, fill="#333333"))
    return y + height


def _rectangle(x: int, y: int, width: int, height: int, fill: str, edge: str) -> str:
    size = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {size} rx="5" fill="{fill}" stroke="{edge}"/>'


def _text(
    x: int, y: int, text: str, weight: str = "normal", *, anchor: str = "start", fill: str = "black"
) -> str:
    style = f'font-weight="{weight}" text-anchor="{anchor}" fill="{fill}" xml:space="preserve"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def _incoming(placement: Placement, to: str) -> Iterator[str]:
    for hop in placement.hops:
        if hop.to == to:
            yield f"← {hop.source}: {_said(hop)}"


def _copy(copy: Copy) -> str:
    return f"copied to the {'GPU' if copy.to_device else 'host'}: {_said(copy)}"


def _said(moved: Hop | Copy) -> str:
    """Return the names of the tensors that move, and their bytes per user."""
    names = ", ".join(tensor.name for tensor in moved.tensors)
    size = f"{bytes_a_user(moved.tensors):,} bytes a user"
    if not all(map(is_sized, moved.tensors)):
        size = f"{size} and what varies in length"
    return f"{names} ({size})"


def _tensors(tensors: Sequence[TensorSpec]) -> dict[str, Any]:
    listed = [{"name": one.name, "dtype": one.dtype, "dims": list(one.dims)} for one in tensors]
    return {
        "tensors": listed,
        "bytes_a_user": bytes_a_user(tensors),
        "varies": [tensor.name for tensor in tensors if not is_sized(tensor)],
    }


def _backend(model: PlacedModel) -> str:
    return f"Triton's {model.backend} backend, {model.instance_kind}"


def _stage(stage: PlacedStage) -> str:
    return f"{stage.name:<20} {stage.by}, on the {'host' if stage.device == HOST else 'GPU'}"


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number} {what if number == 1 else plural}"


def _wrapped(line: str, indent: str = "  ", width: int = WIDTH) -> list[str]:
    return textwrap.wrap(
        line, width, initial_indent=indent, subsequent_indent=indent + "    ", break_long_words=False
    )
