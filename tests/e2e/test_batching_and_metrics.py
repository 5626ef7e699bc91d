"""Requests in a Triton batch run together, and Triton's metrics port reports the answers."""

from __future__ import annotations

import time
from functools import partial
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from e2e.raw import raw_infer, raw_request
from e2e.served import LAYOUTS, Served
from waiting import rested, wait_until

#: The adapter sends its counts to Triton once a second.
SETTLED_S = 1.6

#: Batches of 64 that occupy a server while a client queues requests behind them, for a tenth of a second.
FULL = 40

MODELS = {"fused": ("chain",), "staged": ("user_features", "retrieval", "ranking", "ordering")}


def models(served: Served, layout: str) -> tuple[str, ...]:
    """Return the models that run stages; in Tiercel's own backend `recommend` itself is the fused one."""
    own = layout == "fused" and not served.client.is_model_ready("chain")
    return ("recommend",) if own else MODELS[layout]


def counts(served: Served, model: str) -> tuple[int, int]:
    """Return how many rows a model has answered, and in how many executions."""
    [stats] = served.client.get_inference_statistics(model).model_stats
    return stats.inference_count, stats.execution_count


def counts_of_all(served: Served, layout: str) -> dict[str, tuple[int, int]]:
    """Return the counts of each model of a layout."""
    return {model: counts(served, model) for model in models(served, layout)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_requests_of_every_length_run_together(served: Served, layout: str) -> None:
    """Requests with variable-length or absent inputs must still be batched together."""
    items = served.run.items[served.dataset.item_id].tolist()
    users = served.run.users[served.dataset.user_id].tolist()
    dtype = object if isinstance(users[0], str) else np.int64
    watch = partial(counts_of_all, served, layout)
    before = rested(watch)
    # Full batches go first; the others are sent without waiting and are batched in the queue behind them.
    requests = [raw_request({"user_id": np.array([[user] for user in users[:64]], dtype=dtype)})] * FULL
    for number in range(400):
        inputs = {"user_id": np.array([[users[number % len(users)]]], dtype=dtype)}
        if number % 5:
            inputs["exclude_item_ids"] = np.array([items[: 3 * (number % 5)]], dtype=dtype)
        requests.append(raw_request(inputs))
    answers: Queue[Any] = Queue()
    for tensors, wanted in requests:
        served.client.async_infer(
            LAYOUTS[layout], tensors, lambda result, error: answers.put(error or result), outputs=wanted
        )
    for _ in requests:
        answer = answers.get(timeout=60)
        assert not isinstance(answer, Exception), answer
        assert (answer.as_numpy("count") == served.release.settings.k_default).all()
    wait_until(lambda: all(counts(served, one)[0] - before[one][0] >= FULL * 64 + 400 for one in before))
    after = rested(watch)
    for model, (rows, runs) in before.items():
        rows_now, runs_now = after[model]
        assert rows_now - rows == FULL * 64 + 400
        assert runs_now - runs < FULL + 300, f"{model}: {runs_now - runs} runs for {len(requests)} requests"


def metric(served: Served, name: str, **labels: str) -> float:
    text = httpx.get(served.server.metrics_url).text
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(name) and all(label in line for label in wanted)
    ]
    return sum(values)


def test_metrics_count_answers_by_status_short_lists_and_refusals(served: Served) -> None:
    dtype = object if isinstance(served.known_user, str) else np.int64
    known, unknown = (
        {"user_id": np.array([[u]], dtype=dtype)} for u in (served.known_user, served.unknown_user)
    )
    everything = np.array([served.run.items[served.dataset.item_id].tolist()], dtype=dtype)
    names = {
        "known": ("tiercel_answers_total", {"status": "known"}),
        "unknown": ("tiercel_answers_total", {"status": "unknown"}),
        "short": ("tiercel_short_lists_total", {}),
        "refused": ("tiercel_refused_requests_total", {}),
        "errors": ("tiercel_stage_errors_total", {}),
    }
    time.sleep(SETTLED_S)
    before = {key: metric(served, name, **labels) for key, (name, labels) in names.items()}
    for _ in range(3):
        raw_infer(served.client, known)
    raw_infer(served.client, unknown)
    raw_infer(served.client, {**known, "exclude_item_ids": everything})
    with pytest.raises(InferenceServerException):
        raw_infer(served.client, {**known, "k": np.array([[0]], np.int32)})
    time.sleep(SETTLED_S)
    expected = {"known": 4, "unknown": 1, "short": 1, "refused": 1, "errors": 0}
    until = time.monotonic() + 20  # of a machine that others use
    while True:
        grown = {key: metric(served, name, **labels) - before[key] for key, (name, labels) in names.items()}
        if grown == expected or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert grown == expected
