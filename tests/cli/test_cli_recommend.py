"""`tiercel recommend` and `tiercel health`: their output, and requests to a real server."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.command import Tiercel
from tiercel_client.results import (
    Candidate,
    Explanation,
    HistoryItem,
    Item,
    Recommendation,
    RequestColumn,
    Status,
)
from tiercel_serving.commands.recommend import (
    answer_line,
    explanation_document,
    explanation_view,
    items_table,
    parse_features,
    parse_id,
)
from tiercel_serving.commands.shell import Refused

STAGES = (
    "user_features", "query_towers", "retrieval", "filtering", "candidate_features", "ranking", "ordering"
)  # fmt: skip


def explanation() -> Explanation:
    """Return eleven candidates: two kept and answered, one dropped by a rule, eight beyond the first K."""
    late = [
        Candidate(n, n + 10, n + 100, f"Late {n}", 0.5 - n / 100, "towers", "passed, but too late", False)
        for n in range(4, 12)
    ]
    candidates = (
        Candidate(1, 1, 11, "Heat [1995]", 0.9, "towers", "kept", True, (0.1, 0.2), 0.1, 2),
        Candidate(2, 2, 12, "Sold out", 0.8, "popular", "in stock: not stock > 0", False),
        Candidate(3, 3, 13, None, 0.7, "popular", "kept", True, (0.6, 0.2), 0.6, 1),
        *late,
    )
    items = (Item(13, 0.6, None, 1), Item(11, 0.1, "Heat [1995]", 2))
    times = {stage: 100.0 for stage in STAGES if stage != "query_towers"}
    return Explanation(
        Recommendation(7, Status.KNOWN, items, "id"),
        (HistoryItem(9, 19, "Seven"),),
        candidates,
        STAGES,
        times,
    )


def shown(*renderables: Any) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    for renderable in renderables:
        console.print(renderable)
    return console.export_text()


def test_an_explanation_says_what_each_stage_did() -> None:
    document = explanation_document(explanation())
    assert json.loads(json.dumps(document))["explain"]["candidates"][0]["rank_scores"] == [0.1, 0.2]
    text = shown(*explanation_view(document))
    for words in (
        "User 7 (known): 2 items",
        "Heat [1995]",
        "found 11 candidates: 9 by towers, 2 by popular",
        "kept 2, dropped 9",
        "scored 2, from 0.1000 to 0.6000",
        "answered the best 2",
        "by Triton",
        "0.600 ms",
        "in stock: not stock > 0",
        "passed, but too late",
        "and 2 more",
    ):
        assert words in text, text
    first, second = (line.split() for line in text.splitlines() if line.startswith(("1 ", "2 ")))
    assert first[-3:] == ["#3", "▲", "2"]
    assert second[-3:] == ["#1", "▼", "1"]
    assert max(map(len, text.splitlines())) <= 120


def test_an_empty_answer_is_an_answer() -> None:
    answer = Recommendation(None, Status.UNKNOWN_WITH_FEATURES, ())
    assert answer_line(answer.to_json()) == "Anonymous user (unknown with features): 0 items"
    empty = Explanation(answer, (), (), STAGES, {})
    text = shown(*explanation_view(explanation_document(empty)))
    assert "found nothing" in text
    assert "dropped before" not in text
    assert shown(items_table(answer.to_json()))


COLUMNS = (
    RequestColumn("age", "int64", False, "user"),
    RequestColumn("income", "float64", False, "user"),
    RequestColumn("country", "bytes", False, "user"),
    RequestColumn("likes", "int64", True, "user"),
    RequestColumn("member", "bool", False, "user"),
)


def test_features_are_typed_as_the_server_says() -> None:
    given = ["age=31", "income=1e3", "country=a=b, c", "likes=1,2", "member=false"]
    assert parse_features(given, COLUMNS) == {
        "age": 31,
        "income": 1000.0,
        "country": "a=b, c",
        "likes": [1, 2],
        "member": False,
    }
    assert parse_features(["age=", "likes="], COLUMNS) == {"age": None, "likes": []}
    when = [RequestColumn("when", "int64", False, "context", unit="s")]
    assert parse_features(["when=2026-01-31T12:00Z"], when) == {"when": "2026-01-31T12:00Z"}
    assert parse_features(["when=-5"], when) == {"when": -5}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("age", "NAME=VALUE"),
        ("size=3", "it takes age, income"),
        ("age=old", "int64"),
        ("likes=1,b", "int64"),
        ("member=1", "bool"),
    ],
)
def test_features_that_cannot_be(pair: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse_features([pair], COLUMNS)


def test_ids() -> None:
    assert parse_id("007", "int64", "--user") == 7
    assert parse_id("007", "bytes", "--user") == "007"
    with pytest.raises(Refused, match="--user x7: this server's ids are integers"):
        parse_id("x7", "int64", "--user")


def test_a_real_server(server: dict[str, Any], tiercel_here: Tiercel) -> None:
    url = server["grpc"]
    done = tiercel_here("recommend", "--user", "ü 3", "-k", 4, "--url", url, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["user_id"], document["status"], document["count"]) == ("ü 3", "known", 4)
    assert all(item["title"] for item in document["items"])
    first = document["items"][0]
    again = tiercel_here("recommend", "--user", "ü 3", "--exclude", first["item_id"], "--url", url, "--json")
    assert first["item_id"] not in [item["item_id"] for item in json.loads(again.stdout)["items"]]
    shown = tiercel_here("recommend", "--user", "ü 3", "--url", url)
    assert first["title"] in shown.stdout
    other = document["items"][1]["item_id"]
    for option in ("--include", "--candidate"):
        asked = (
            "recommend",
            "--user",
            "ü 3",
            option,
            other,
            option,
            first["item_id"],
            "--url",
            url,
            "--json",
        )
        found = [item["item_id"] for item in json.loads(tiercel_here(*asked).stdout)["items"]]
        assert found == [first["item_id"], other]


def test_a_real_explanation(server: dict[str, Any], tiercel_here: Tiercel) -> None:
    done = tiercel_here("recommend", "--user", "ü 3", "--url", server["grpc"], "--explain", "--json")
    explained = json.loads(done.stdout)["explain"]
    assert [stage["stage"] for stage in explained["stages"]] == list(STAGES)
    assert all(stage["time_us"] > 0 for stage in explained["stages"])
    assert len(explained["candidates"]) == 24
    assert sum(candidate["kept"] for candidate in explained["candidates"]) <= 16
    shown = tiercel_here("recommend", "--user", "ü 3", "--url", server["grpc"], "--explain")
    assert "found 24 candidates" in shown.stdout
    assert "but after the first 16" in shown.stdout
    # An item that a rule excludes for all users is no candidate.
    assert "in stock" not in shown.stdout


def test_why_an_item(server: dict[str, Any], release: Path, tiercel_here: Tiercel) -> None:
    asked = ("explain", "--user", "ü 3", "--item", "ítem/4", "-k", 3)
    shown = [tiercel_here(*asked, *where) for where in (("--url", server["grpc"]), ("--release", release))]
    assert shown[0].returncode == 0, shown[0].stderr
    assert shown[0].stdout == shown[1].stdout
    assert "item ítem/4 (Thing 4 ✓)" in shown[0].stdout
    document = json.loads(tiercel_here(*asked, "--url", server["grpc"], "--json").stdout)
    assert set(document) >= {"stage", "reason", "rank", "score", "needed", "seen"}
    nobody = tiercel_here("explain", "--item", "nope", "--release", release, "--json")
    assert json.loads(nobody.stdout)["stage"] == "catalogue"


def test_somebody_new(server: dict[str, Any], tiercel_here: Tiercel) -> None:
    done = tiercel_here("recommend", "--feature", "age=31", "--url", server["grpc"], "--json")
    assert json.loads(done.stdout)["status"] == "unknown_with_features"
    done = tiercel_here("recommend", "--user", "nobody", "--url", server["grpc"])
    assert "User nobody (unknown): 5 items" in done.stdout


def test_what_a_server_refuses_is_usage(server: dict[str, Any], tiercel_here: Tiercel) -> None:
    for arguments in (["-k", 0], ["-k", 1000], ["--feature", "nope=1"], ["--feature", "age=old"]):
        done = tiercel_here("recommend", "--user", "x", "--url", server["grpc"], *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error ")


def test_health(server: dict[str, Any], tiercel: Tiercel, tiercel_here: Tiercel) -> None:
    done = tiercel("health", server["grpc"], "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["healthy"]
    assert document["build_id"] == server["build_id"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        done = tiercel_here("health", url, "--timeout-s", 0.3, "--json")
    assert done.returncode == 1
    assert not json.loads(done.stdout)["healthy"]
    assert url in done.stderr
    done = tiercel_here("recommend", "--user", 1, "--url", url, "--timeout-s", 0.3)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
