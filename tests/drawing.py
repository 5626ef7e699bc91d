"""How much an ordinary run tries, and how much ``--slow``: drawn examples, and pairs of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

#: How many examples an ordinary run draws where a test states no number; and how many times as many of all
#: ``--slow`` draws.
UNSTATED, SLOW_TIMES = 30, 15


def draw(*, slow: bool) -> None:
    """Let Hypothesis draw the same in every run; with ``slow`` more, and anew in each."""
    times = SLOW_TIMES if slow else 1
    # How long an example takes says nothing on a machine that others use.
    settings.register_profile("ours", derandomize=not slow, deadline=None, max_examples=UNSTATED * times)
    settings.load_profile("ours")
    # It takes constants out of our modules, of those that are loaded: what it draws would depend on which
    # tests the process ran before.
    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants


def examples(ordinary: int, **more: Any) -> settings:
    """Return a decorator of a test that draws so many examples, and more with ``--slow``."""
    return settings(max_examples=ordinary * settings.default.max_examples // UNSTATED, **more)


def every_pair(ones: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return parameters: an ordinary run tries each value of both at least once, ``--slow`` every pair."""
    longest = max(len(ones), len(others))
    ordinary = {(number % len(ones), number % len(others)) for number in range(longest)}
    return [
        pytest.param(ones[one], others[other], marks=[] if (one, other) in ordinary else pytest.mark.slow)
        for one, other in product(range(len(ones)), range(len(others)))
    ]
