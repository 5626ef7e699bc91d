"""Sizes and repeats of the full benchmark, and of a quick run that takes seconds, for tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes and repeats.

    Parameters
    ----------
    largest
        Entries of the largest vocabulary of the Criteo-like cases.
    entries
        Entries of the integer vocabulary of the case ``three``; the strings have a tenth.
    batches
        Rows of a batch, for each comparison with NVTabular.
    singles
        Number of different batches of one row.
    pool
        Number of rows from which the larger batches are taken.
    rounds, slow_rounds
        Rounds of the in-process comparisons, and of those with NVTabular where a call takes over a second.
    seconds
        How long each side of a comparison is repeated in a round; at least one call.
    flat
        Vocabulary sizes for which the time of one row is compared.
    keys
        Entries of the vocabulary whose lookups are compared with pandas.
    strings
        Entries of the vocabulary that is opened.
    instances
        Number of processes that open it, including the first.
    quick
        Whether this is the quick run, whose times mean nothing, so that no limit applies.
    """

    largest: int = 1_000_000
    entries: int = 100_000
    batches: tuple[int, ...] = (1, 100, 1_000, 10_000)
    singles: int = 256
    pool: int = 20_000
    rounds: int = 7
    slow_rounds: int = 3
    seconds: float = 0.25
    flat: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    keys: int = 1_000_000
    strings: int = 10_000_000
    instances: int = 4
    quick: bool = False


FULL = Plan()
QUICK = Plan(
    largest=3_000,
    entries=300,
    batches=(1, 100),
    singles=8,
    pool=300,
    rounds=2,
    slow_rounds=1,
    seconds=0.01,
    flat=(300, 3_000),
    keys=5_000,
    strings=20_000,
    instances=2,
    quick=True,
)
