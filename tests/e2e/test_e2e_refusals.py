"""A bad request gets a clear error of its own, and the next request is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from e2e.raw import raw_infer
from e2e.served import LAYOUTS, Served

Inputs = dict[str, Any]


def ids(served: Served, *rows: Any) -> np.ndarray:
    """Return rows of raw user or item ids in this release's dtype."""
    return np.array(rows, dtype=object if isinstance(rows[0], str) else np.int64)


def one_user(served: Served) -> Inputs:
    return {"user_id": ids(served, served.known_user)[:, None]}


def two_items(served: Served) -> np.ndarray:
    return ids(served, *served.run.items[served.dataset.item_id].iloc[:2])[None, :]


def wrong_user_type(served: Served) -> Inputs:
    wrong = np.array([[1]]) if isinstance(served.known_user, str) else np.array([["42"]], dtype=object)
    return {"user_id": wrong}


def infinite(served: Served) -> Inputs:
    """Return a request with -inf in a numeric column; in an integer one, as float32, if none is float."""
    columns = [c for c in served.release.manifest.request_columns if not c.is_list and c.dtype != "bytes"]
    entry = min(columns, key=lambda c: not c.dtype.startswith("float"))
    dtype = entry.dtype if entry.dtype.startswith("float") else "float32"
    return {**one_user(served), entry.name: np.array([[-np.inf]], dtype)}


def too_many_users(served: Served) -> Inputs:
    limit = served.release.settings.max_batch_size
    return {"user_id": ids(served, *[served.known_user] * (limit + 1))[:, None]}


def k_of(value: int) -> Callable[[Served], Inputs]:
    return lambda served: {**one_user(served), "k": np.array([[value]], np.int32)}


def length_of(value: int) -> Callable[[Served], Inputs]:
    return lambda served: {
        **one_user(served),
        "history_item_ids": two_items(served),
        "history_item_ids__length": np.array([[value]], np.int32),
    }


#: Case → the inputs to send, and words that the error must contain.
REFUSED: dict[str, tuple[Callable[[Served], Inputs], str]] = {
    "user id of the wrong type": (wrong_user_type, "user_id"),
    "k of zero": (k_of(0), "k must be 1 to"),
    "negative k": (k_of(-3), "k must be 1 to"),
    "k above the limit": (k_of(100_000), "k must be 1 to"),
    "infinity": (infinite, ""),
    "empty batch": (lambda served: {"user_id": ids(served, served.known_user)[:0, None]}, ""),
    "batch above the limit": (too_many_users, "batch"),
    "wrong shape": (lambda served: {"user_id": ids(served, served.known_user)}, "user_id"),
    "two ids in a row": (lambda served: {"user_id": ids(served, *[served.known_user] * 2)[None]}, "user_id"),
    "wrong dtype": (lambda served: {**one_user(served), "k": np.array([[3.0]], np.float32)}, "k"),
    "missing input": (lambda served: {"k": np.array([[3]], np.int32)}, "input user_id is missing"),
    "unknown input": (lambda served: {**one_user(served), "nonsense": np.array([[3]])}, "nonsense"),
    "length beyond the list": (length_of(3), "history_item_ids__length"),
    "length below null": (length_of(-2), "history_item_ids__length"),
    "rows that do not match": (
        lambda served: {**one_user(served), "k": np.array([[3], [4]], np.int32)},
        "",
    ),
    "exclusions above the limit": (
        lambda served: {
            **one_user(served),
            "exclude_item_ids": np.repeat(two_items(served), served.release.settings.max_excluded, axis=1),
        },
        "exclude_item_ids",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_alone_and_the_next_is_served(served: Served, case: str, layout: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(InferenceServerException) as refused:
        raw_infer(served.client, make(served), model=LAYOUTS[layout])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", refused.value
    assert words in refused.value.message()
    answer = raw_infer(served.client, one_user(served), model=LAYOUTS[layout])
    assert answer["count"].tolist() == [[served.release.settings.k_default]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_request_does_not_harm_its_neighbours(served: Served, layout: str) -> None:
    """Many are sent at once, so that Triton batches good and bad ones together."""
    from concurrent.futures import ThreadPoolExecutor

    expected = raw_infer(served.client, one_user(served), model=LAYOUTS[layout])

    def send(number: int) -> dict[str, np.ndarray] | str:
        inputs = k_of(0)(served) if number % 3 == 0 else one_user(served)
        try:
            return raw_infer(served.client, inputs, model=LAYOUTS[layout])
        except InferenceServerException as error:
            return str(error.status())

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(120)))
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert answer == "StatusCode.INVALID_ARGUMENT"
        else:
            assert isinstance(answer, dict)
            assert answer["item_id"].tolist() == expected["item_id"].tolist()
