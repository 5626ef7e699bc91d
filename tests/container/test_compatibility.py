"""``docs/compatibility.md`` equals its table, which agrees with pyproject.toml and the embedded Triton."""

from __future__ import annotations

import re
from pathlib import Path

from container.entry_point import Container
from tiercel_serving.supervise.compatibility import PARTS, TRITONS, markdown

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8") == markdown(), (
        "write it anew: python -m tiercel_serving.supervise.compatibility > docs/compatibility.md"
    )


def test_pythons_are_those_of_the_package() -> None:
    assert 'requires-python = ">=3.10"' in PYPROJECT
    bounds = {"server": ("nvidia-pytriton", "3.13"), "export": ("nvtabular", "3.12")}
    for part in PARTS:
        first, last = re.findall(r"3\.\d+", part.python)
        assert first == "3.10"
        if part.extra:
            assert re.search(rf"^{part.extra} = \[", PYPROJECT, flags=re.M), part.extra
        if part.extra in bounds:
            package, below = bounds[part.extra]
            [marker] = re.findall(rf"\"{package}[^\"]*; python_version < '([\d.]+)'\"", PYPROJECT)
            assert marker == below
            assert int(last.split(".")[1]) + 1 == int(below.split(".")[1])


def test_the_embedded_triton_is_the_one_in_the_table(container: Container) -> None:
    [embedded] = [row for row in TRITONS if row.cuda is None]
    assert re.search(rf"server_version +\| {re.escape(embedded.version)}\.\d+ ", container.log)
    assert sorted(TRITONS, key=lambda row: row.release) == list(TRITONS)
