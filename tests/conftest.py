"""Options, markers and what every test area shares."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--bench", action="store_true", help="also run tests that measure time")


def _missing(marker: str, config: pytest.Config) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    if marker in ("slow", "bench"):
        return None if config.getoption(f"--{marker}") else f"run with --{marker}"
    if marker == "tensorrt":
        return None if importlib.util.find_spec("tensorrt") else "the TensorRT libraries are not installed"
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("slow", "bench", "tensorrt", "gpu"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := _missing(marker, config)):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))
