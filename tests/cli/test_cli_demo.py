"""The whole demo on synthetic data, where MovieLens-100K is present but broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_takes_made_up_data_where_movielens_cannot_be_had(tmp_path: Path) -> None:
    broken = tmp_path / "data" / "ml-100k"
    broken.mkdir(parents=True)
    for name in ("u.data", "u.item", "u.user", "u.genre"):
        (broken / name).write_text("1\t2\t3\t4\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "tiercel", "demo", "--epochs", "1", "--dir", tmp_path, "--json"],
        env={**os.environ, "TIERCEL_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ml-100k" in done.stderr
    assert "Taking made-up data instead" in done.stderr
    document = json.loads(done.stdout)
    assert document["data"] == "synthetic"
    assert len(document["recommendation"]["items"]) == 10
    assert all(item["title"] for item in document["recommendation"]["items"])
    assert (tmp_path / "releases" / "synthetic" / "manifest.json").is_file()
