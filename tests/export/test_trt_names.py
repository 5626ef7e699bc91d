"""Names of TensorRT's binding that we use: they exist in the installed, oldest and newest versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tiercel_serving.engines.trt import flavours
from tiercel_serving.engines.trt.flavours import FLAVOURS, NAMES, find_module

#: Version → class → its names, from ``read_trt_names.py``, for the oldest and newest supported version.
KNOWN: dict[str, dict[str, str]] = {
    version: names
    for version, names in json.loads(Path(__file__).with_name("trt_names.json").read_text()).items()
    if isinstance(names, dict)
}


def missing(has: Any) -> list[str]:
    return [f"{owner}.{name}" for owner, names in NAMES.items() for name in names if not has(owner, name)]


@pytest.mark.parametrize("version", KNOWN)
def test_the_binding_of_each_end_has_every_name(version: str) -> None:
    """Fails if we use a name that 11 removed, or that 10.12 did not have yet."""
    known = {owner: set(names.split()) for owner, names in KNOWN[version].items()}
    assert not missing(lambda owner, name: name in known[owner])


def test_the_ends_are_those_of_the_flavour() -> None:
    versions = sorted(tuple(map(int, version.split(".")[:2])) for version in KNOWN)
    row = FLAVOURS["tensorrt"]
    assert versions[0] == row.since
    assert row.since < versions[-1] < row.below


def test_what_11_removed_would_be_noticed() -> None:
    old, new = (KNOWN[version] for version in sorted(KNOWN))
    removed = {owner: set(old[owner].split()) - set(new[owner].split()) for owner in old}
    assert {"FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS"} <= removed["BuilderFlag"]
    assert removed["NetworkDefinitionCreationFlag"] == {"EXPLICIT_BATCH"}
    assert {"int8_calibrator", "set_calibration_profile"} <= removed["IBuilderConfig"]
    for owner, names in removed.items():
        assert not names & set(NAMES[owner]), owner


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_installed_binding_has_every_name(flavour: str) -> None:
    trt = find_module(FLAVOURS[flavour])
    if trt is None:
        pytest.skip(f"{flavour} is not installed")
    assert not missing(lambda owner, name: hasattr(getattr(trt, owner) if owner else trt, name))


def test_the_table_of_names_is_whole() -> None:
    """Every ``trt.X`` and ``trt.X.Y`` in the code is in the table."""
    folder = Path(flavours.__file__).parent
    said = [
        one
        for file in folder.glob("*.py")
        for one in re.findall(r"\btrt\.(\w+)(?:\.(\w+))?", file.read_text())
    ]
    assert len(said) > 10
    for owner, name in said:
        assert owner in NAMES[""], owner
        assert not name or owner not in NAMES or name in NAMES[owner] or owner == "ILogger", (owner, name)
