"""The example user in the lines that `tiercel serve` prints, for every kind of id."""

from __future__ import annotations

import json
import shlex
import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from cli.command import Tiercel
from tiercel_serving.commands.serve import SLOTS, example_user, human
from tiercel_serving.lookups.build import build_lookup


def release_of(user_ids: list[Any]) -> Any:
    """Return a stand-in with the parts of a release that are read."""
    is_text = any(isinstance(user, bytes) for user in user_ids)
    keys = np.array(user_ids, np.object_ if is_text else np.int64)
    arrays = {**build_lookup(keys, "user_id"), **build_lookup(keys[::-1], "other")}
    catalogue = SimpleNamespace(user_id_dtype="bytes" if is_text else "int64")
    return SimpleNamespace(
        artefact=lambda kind, name: SimpleNamespace(arrays=arrays),
        manifest=SimpleNamespace(catalogue=catalogue),
    )


INTEGERS = {
    "close together": list(range(100, 5000)),
    "far apart": [3 + 10**15 * number for number in range(50)],
    "negative": [-7, -5],
    "one": [2**62],
    "many": list(range(10**6, 10**6 + 3 * SLOTS)),
}
TEXTS = {
    "short": [f"u{number}".encode() for number in range(2000)],
    "long": [b"the-user-whose-name-does-not-end-%d" % number * 9 for number in range(30)],
    "some long": [b"x" * number for number in range(1, 90)],
    "letters of all kinds": ["пользователь 'один'".encode(), "用户".encode()],
    "some that cannot be typed": [b"", b"\xff\xfe", b"a\0b", b"plain", b"\n"],
}


@pytest.mark.parametrize("user_ids", INTEGERS.values(), ids=INTEGERS)
def test_integers(user_ids: list[int]) -> None:
    user = example_user(release_of(user_ids))
    assert type(user) is int
    assert user in user_ids


@pytest.mark.parametrize("user_ids", TEXTS.values(), ids=TEXTS)
def test_texts(user_ids: list[bytes]) -> None:
    user = example_user(release_of(user_ids))
    assert isinstance(user, str)
    assert user.encode() in user_ids
    assert user.isprintable()


def test_42_is_taken_where_there_is_one() -> None:
    assert example_user(release_of(list(range(1, 900)))) == 42
    assert example_user(release_of([b"7", b"42"])) == "42"


def test_nobody_is_named_where_nobody_can_be() -> None:
    assert example_user(release_of([])) == 0
    assert example_user(release_of([b"\xff"])) == "nobody"


def test_the_printed_lines_can_be_typed(server: dict[str, Any], tiercel_here: Tiercel) -> None:
    """On a real server whose users have text ids with accents and blanks."""
    printed = [line for line in human(server) if isinstance(line, str) and "[/]" in line]
    lines = [Text.from_markup(line).plain.split(maxsplit=1)[1] for line in printed]
    [ask] = [shlex.split(line) for line in lines if line.startswith("tiercel recommend")]
    done = tiercel_here(*ask[1:], "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "known"
    assert answer["user_id"] == server["user"]
    [probe] = [shlex.split(line) for line in lines if line.startswith("tiercel health")]
    assert tiercel_here(*probe[1:]).returncode == 0
    [curl] = [line for line in lines if line.startswith("curl")]
    done = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=60)
    outputs = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    assert outputs["status"] == [0]
