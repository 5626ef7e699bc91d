"""`tiercel score` needs no more memory for ten times the users, measured from outside the process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_release import ITEMS, SETTINGS, Parts, small_release

from peak_memory import peak_bytes

TIERCEL = [sys.executable, "-c", "from tiercel_serving.commands.main import main; main()"]
FEW, MANY = 20_000, 200_000
#: Interactions per user.
HAD = 3
#: Memory limit per additional user, in bytes. An answer kept to the end would take 150 or more.
MOST_BYTES = 40


def frames(parts: Parts, users: int) -> dict[str, pd.DataFrame]:
    """Return a number of users, most of them unknown to the workflow, with a few items each."""
    rng = np.random.default_rng(0)
    ids = np.arange(1, users + 1)
    known = parts.users.iloc[rng.integers(0, len(parts.users), users)]
    count = users * HAD
    return {
        "users": known.assign(user_id=ids).reset_index(drop=True),
        "interactions": pd.DataFrame(
            {
                "user_id": np.repeat(ids, HAD),
                "item_id": parts.items["item_id"].to_numpy()[rng.integers(0, ITEMS, count)],
                "timestamp": np.arange(count),
                "device": "web",
            }
        ),
    }


def peak(release: Path, output: Path) -> int:
    """Return the command's peak memory in bytes, without the pages of memory-mapped files."""
    command = [*TIERCEL, "score", str(release), str(output), "-k", str(SETTINGS.k_max), "--json"]
    return peak_bytes(command, "RssAnon")[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_users(parts: Parts, tmp_path: Path) -> None:
    peaks = []
    for users in (FEW, MANY):
        made = small_release(tmp_path / str(users), parts, verify=False, **frames(parts, users))
        output = tmp_path / f"{users}.parquet"
        peaks.append(peak(made.path, output))
        assert pq.read_metadata(output).num_rows == users
    small, large = peaks
    print(f"{FEW:,} users {small / 1e6:.1f} MB, {MANY:,} users {large / 1e6:.1f} MB")
    assert (large - small) / (MANY - FEW) < MOST_BYTES
