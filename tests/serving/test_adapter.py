"""The adapter with a stand-in for Triton's module: answers, per-request errors and metrics.

The end-to-end tests check it under a real Triton.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stage_oracles import Ask, packed, tensors
from tiny_release import Tiny, objects

from tiercel_serving.runtime import batching
from tiercel_serving.runtime.embedded import TRITON_TYPES, joined_if_alike
from tiercel_serving.spec import Checks
from tiercel_serving.stages.specs import PACKED
from tiercel_serving.stages.table import build_stage

OUTPUTS = ("item_id", "score", "count", "status")


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous, name
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INTERNAL, NOT_FOUND, INVALID_ARG = "INTERNAL", "NOT_FOUND", "INVALID_ARG"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


class Response:
    def __init__(self, output_tensors: tuple[Tensor, ...] = (), error: TritonError | None = None) -> None:
        self.error = error
        self.arrays = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}


class Request:
    def __init__(self, arrays: dict[str, np.ndarray], outputs: tuple[str, ...] = OUTPUTS) -> None:
        self._arrays, self._outputs = arrays, outputs

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self) -> list[str]:
        return list(self._outputs)


class MetricFamily:
    COUNTER = "counter"
    values: dict[tuple[str, str], float]

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        assert kind == self.COUNTER
        self._name = name

    def Metric(self, labels: dict[str, str]) -> Any:
        key = (self._name, "".join(labels.values()))
        self.values.setdefault(key, 0)

        def increment(by: float) -> None:
            self.values[key] += by

        return SimpleNamespace(increment=increment)


@pytest.fixture
def fake_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], float]]:
    """Replace Triton's module and yield the metric values reported to it, by (family, label)."""
    MetricFamily.values = {}
    interval_s = sys.getswitchinterval()
    module = ModuleType("triton_python_backend_utils")
    logger = SimpleNamespace(log_error=lambda message: None)
    for name, value in {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "TritonModelException": type("TritonModelException", (Exception,), {}),
        "InferenceResponse": Response,
        "MetricFamily": MetricFamily,
        "Logger": logger,
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.delitem(sys.modules, "tiercel_serving.runtime.triton", raising=False)
    yield MetricFamily.values
    sys.modules.pop("tiercel_serving.runtime.triton", None)
    sys.setswitchinterval(interval_s)


Open = Callable[..., Any]


@pytest.fixture
def open_model(fake_triton: dict[tuple[str, str], float], plain: Tiny) -> Iterator[Open]:
    opened: list[Any] = []

    def get(stages: str = "", build_id: str = "build-1", release: str | None = None) -> Any:
        from tiercel_serving.runtime.triton import TritonPythonModel

        parameters = {
            "stages": json.dumps(
                stages.split() or [name for name in plain.release.stages if name != "describe_items"]
            ),
            "build_id": build_id,
            "release": release or str(plain.release.path),
        }
        config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
        model = TritonPythonModel()
        repository = plain.release.path / "triton" / "chain"
        model.initialize({"model_config": json.dumps(config), "model_repository": str(repository)})
        opened.append(model)
        return model

    yield get
    for model in opened:
        model.finalize()


def test_the_bad_are_refused_and_their_neighbours_answered(open_model: Open, plain: Tiny) -> None:
    model = open_model()
    good = [tensors([Ask(plain.user_ids[2], k=3)]), tensors([Ask(plain.user_ids[3], k=7), Ask(-4)])]
    bad = [{"k": np.array([[1]], np.int32)}, tensors([Ask(plain.user_ids[2], k=99)])]
    mixed = [bad[0], good[0], bad[1], good[1]]
    responses = model.execute([Request(arrays) for arrays in mixed])
    assert [response.error and response.error.code for response in responses] == [
        "INVALID_ARG",
        None,
        "INVALID_ARG",
        None,
    ]
    assert "user_id is missing" in str(responses[0].error)
    assert "k must be 1 to 8, got 99" in str(responses[2].error)
    for arrays, response in zip(good, responses[1::2], strict=True):
        alone = model.execute([Request(arrays)])[0]
        assert sorted(response.arrays) == sorted(OUTPUTS)
        for name in ("item_id", "count", "status"):
            np.testing.assert_array_equal(response.arrays[name], alone.arrays[name])


def raw(requests: list[dict[str, np.ndarray]], outputs: tuple[str, ...] = OUTPUTS) -> list[Any]:
    """Return the requests in the form in which Tiercel's backend reads a batch."""
    read: list[Any] = []
    for arrays in requests:
        kind = tuple((name, TRITON_TYPES[one.dtype], one.shape) for name, one in arrays.items())
        same = read[-1][0] if read and read[-1][0][0] == kind else (kind, list(outputs))
        read.append(
            (same, [one if one.dtype != object else one.reshape(-1).tolist() for one in arrays.values()])
        )
    return read


def cut(shared: dict[str, np.ndarray], users: int, requests: int) -> list[dict[str, np.ndarray]]:
    """Return what each request gets when the backend splits one shared answer."""
    assert all(len(shared[name]) == users * requests for name in OUTPUTS)
    rows = [slice(users * n, users * (n + 1)) for n in range(requests)]
    return [{name: shared[name][own] for name in OUTPUTS} for own in rows]


@pytest.mark.parametrize(
    "users",
    [
        pytest.param([[Ask(1)], [Ask(2)], [Ask(3)]], id="one user each"),
        pytest.param([[Ask(1)], [Ask(-4)], [Ask(3)]], id="one whom nobody knows"),
        pytest.param([[Ask(1, k=3)], [Ask(2, k=3)]], id="answers of one width"),
        pytest.param([[Ask(1, k=3), Ask(2, k=3)], [Ask(3, k=3), Ask(-4, k=3)]], id="two users each"),
        pytest.param([[Ask(1, exclude=(1, 2))], [Ask(2, exclude=(3, 4))]], id="lists"),
    ],
)
def test_requests_that_are_alike_are_answered_as_others_are(
    open_model: Open, plain: Tiny, users: list[list[Ask]]
) -> None:
    model = open_model()
    requests = [
        tensors(
            [ask if ask.user_id < 0 else replace(ask, user_id=plain.user_ids[ask.user_id]) for ask in asks]
        )
        for asks in users
    ]
    each = model.answer([(arrays, OUTPUTS) for arrays in requests])
    # What the model remembers of a batch holds for the next one, and for a single request of that kind.
    for some in (requests, requests[::-1], requests[:1]):
        read = raw(some)
        joined = joined_if_alike(read)
        assert joined is not None
        shared = model.answer_alike(joined, len(some), read[0][0])
        answers = cut(shared, len(users[0]), len(some))
        wanted = each if some[0] is requests[0] else each[::-1]
        for given, expected in zip(answers, wanted[: len(some)], strict=True):
            for name, array in given.items():
                np.testing.assert_array_equal(array, expected[name], name, strict=True)


def test_requests_that_differ_are_not_joined(open_model: Open, plain: Tiny) -> None:
    one, other = (tensors([Ask(plain.user_ids[n], exclude=plain.item_ids[:3])]) for n in (2, 3))
    assert joined_if_alike(raw([one, other])) is not None
    wider = tensors([Ask(plain.user_ids[3], exclude=plain.item_ids[:4])])
    text = {**one, "occupation": objects([b"lawyer"])[:, None]}
    for strange in (wider, text, {"user_id": one["user_id"]}):
        assert joined_if_alike(raw([one, strange])) is None
    assert joined_if_alike(raw([one]) + raw([other], OUTPUTS[:2])) is None
    assert joined_if_alike(raw([text, text])) is None
    model = open_model()
    read = raw([tensors([Ask(plain.user_ids[2], k=k)]) for k in (3, 8)])
    assert read[0][0] is read[1][0]
    assert model.answer_alike(joined_if_alike(read), 2, read[0][0]) is None  # k, so the width, differs
    # One request is invalid; only answering each separately shows which one.
    bad = [tensors([Ask(plain.user_ids[2], k=k)]) for k in (3, 99)]
    read = raw(bad)
    assert model.answer_alike(joined_if_alike(read), 2, read[0][0]) is None
    assert [isinstance(one, dict) for one in model.answer([(arrays, OUTPUTS) for arrays in bad])] == [
        True,
        False,
    ]


@pytest.mark.parametrize("release", ["strings", "plain"])
def test_no_stage_checks_what_it_always_gets(tiny_of: Callable[[str], Tiny], release: str) -> None:
    """Stages check optional inputs only: a request without any costs no check."""
    tiny, asked = tiny_of(release), set[str]()

    class Noted(dict[str, np.ndarray]):
        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return super().__contains__(name)

        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

        def __getitem__(self, name: str) -> np.ndarray:
            asked.add(name)
            return super().__getitem__(name)

    for name in tiny.release.stages:
        stage = build_stage(name, tiny.release)
        if isinstance(stage, Checks):
            asked.clear()
            blank = batching.absent(stage.spec.inputs, 1)
            # Where an input has two forms, only one may be sent.
            twice = {"item_row", *PACKED.values()}
            stage.check(Noted({name: array for name, array in blank.items() if name not in twice}))
            assert asked, name
            assert not asked & {one.name for one in stage.spec.inputs if not one.optional}, name


def test_a_badly_packed_list_falls_alone(open_model: Open, tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("strings")
    model = open_model(release=str(tiny.release.path))
    good = [packed(tensors([Ask(tiny.user_ids[n], exclude=tiny.item_ids[:9])])) for n in (2, 3)]
    bad = {**good[0], "exclude_item_ids__packed": objects([b"\2\0\0\0"])[:, None]}
    responses = model.execute([Request(arrays) for arrays in (good[0], bad, good[1])])
    assert [response.error and response.error.code for response in responses] == [None, "INVALID_ARG", None]
    assert "exclude_item_ids__packed, row 0: it says 2 ids" in str(responses[1].error)
    for arrays, response in zip(good, responses[::2], strict=True):
        np.testing.assert_array_equal(
            response.arrays["item_id"], model.execute([Request(arrays)])[0].arrays["item_id"]
        )
        assert not set(response.arrays["item_id"][0]) & set(tiny.item_ids[:9])


def test_only_what_was_asked_for_is_given(open_model: Open, plain: Tiny) -> None:
    arrays = tensors([Ask(plain.user_ids[2]), Ask(plain.user_ids[4])])
    names = ("kept_row", "time_us_retrieval", "time_us_query_near")
    response = open_model().execute([Request(arrays, names)])[0]
    assert sorted(response.arrays) == sorted(names)
    times = response.arrays["time_us_retrieval"]
    assert times.dtype == np.float32
    assert times.shape == (2, 1)
    assert (times > 0).all()


def test_one_poisonous_request_falls_alone(
    open_model: Open, plain: Tiny, fake_triton: dict[tuple[str, str], float]
) -> None:
    model = open_model()
    ranking = next(stage for stage in model._chain.stages if stage.spec.name == "ranking")
    run = ranking.run

    def broken(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (arrays["user_num"] == 66).any():
            raise RuntimeError("poison")
        return run(arrays)

    ranking.run = broken
    asks = [Ask(plain.user_ids[2]), Ask(plain.user_ids[3], age=66.0), Ask(plain.user_ids[4])]
    responses = model.execute([Request(tensors([ask])) for ask in asks])
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == "INTERNAL"
    assert "stage ranking: RuntimeError: poison" in str(responses[1].error)
    assert model.execute([Request(tensors([asks[0]]))])[0].error is None
    model.finalize()
    assert fake_triton["tiercel_stage_errors_total", "ranking"] == 1
    assert fake_triton["tiercel_answers_total", "known"] == 3


def test_counts(open_model: Open, plain: Tiny, fake_triton: dict[tuple[str, str], float]) -> None:
    model = open_model()
    asks = [Ask(plain.user_ids[2]), Ask(-1), Ask(-1, age=3.0), Ask(plain.user_ids[1]), Ask(plain.user_ids[0])]
    model.execute([Request(tensors(asks[:2])), Request(tensors(asks[2:])), Request({})])
    model.finalize()
    values = {key: value for key, value in fake_triton.items() if value}
    assert values == {
        ("tiercel_answers_total", "known"): 3,
        ("tiercel_answers_total", "unknown"): 1,
        ("tiercel_answers_total", "unknown_with_features"): 1,
        # This user has seen every item.
        ("tiercel_short_lists_total", ""): 1,
        ("tiercel_refused_requests_total", ""): 1,
    }
    assert ("tiercel_stage_errors_total", "retrieval") in fake_triton


def test_many_answers_are_counted_at_once(
    open_model: Open, plain: Tiny, fake_triton: dict[tuple[str, str], float]
) -> None:
    model = open_model()
    seen_all, unknown = plain.user_ids[1], -1
    # Batches with and without a k of their own: each answer of the first user is short of it.
    for k in (None, 1, 2, None, 1):
        model.execute([Request(tensors([Ask(seen_all, k=k), Ask(unknown, k=k)])) for _ in range(3)])
    model.finalize()
    assert {key: value for key, value in fake_triton.items() if value} == {
        ("tiercel_answers_total", "known"): 15,
        ("tiercel_answers_total", "unknown"): 15,
        ("tiercel_short_lists_total", ""): 15,
    }


def test_a_thread_that_computes_does_not_hold_requests_up(open_model: Open, plain: Tiny) -> None:
    model, request = open_model(), Request(tensors([Ask(plain.user_ids[2])]))
    model.execute([request])
    stop, times_s = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(20):
            before = time.perf_counter()
            model.execute([request])
            time.sleep(0.001)  # gives Python's lock away, as waiting for a request does
            times_s.append(time.perf_counter() - before)
    finally:
        stop.set()
        thread.join()
    # By Python's own interval, getting the lock back takes 5 ms, every time that it was given away.
    assert sorted(times_s)[10] < 0.005


def test_an_opened_model_is_not_looked_through_for_garbage(open_model: Open) -> None:
    model = open_model()
    assert gc.get_freeze_count() > 10_000
    model.finalize()
    assert gc.get_freeze_count() == 0


def test_counts_are_of_the_answers_and_not_of_memory_that_is_tritons_again(
    open_model: Open, plain: Tiny, fake_triton: dict[tuple[str, str], float]
) -> None:
    model = open_model()
    arrays = tensors([Ask(plain.user_ids[2], k=2)])
    assert model.execute([Request(arrays)])[0].arrays["count"].tolist() == [[2]]
    arrays["k"][...] = 0
    model.finalize()
    assert fake_triton["tiercel_short_lists_total", ""] == 0


def test_models_of_one_stage_make_the_same_answer(open_model: Open, plain: Tiny) -> None:
    """Run the staged layout hop by hop, with the tensors that Triton would pass on."""
    asks = [Ask(plain.user_ids[2], k=2, exclude=plain.item_ids[:4]), Ask(-4, history=plain.item_ids[5:9])]
    fused = open_model().execute([Request(tensors(asks))])[0].arrays
    carried = tensors(asks)
    for name, spec in plain.release.stages.items():
        if name != "describe_items":
            model = open_model(stages=name)
            inputs = {t.name: carried[t.name] for t in spec.inputs if t.name in carried}
            outputs = tuple(tensor.name for tensor in spec.outputs)
            response = model.execute([Request(inputs, outputs)])[0]
            assert response.error is None
            carried.update(response.arrays)
    for name in OUTPUTS:
        np.testing.assert_array_equal(carried[name], fused[name])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "no parameter stages, release, build_id"),
        ({"stages": '["ordering"]', "release": "x"}, "no parameter build_id"),
        ({"stages": "ordering", "release": "x", "build_id": "b"}, "stages: expected a JSON list of names"),
        ({"stages": "[]", "release": "x", "build_id": "b"}, "stages: expected a JSON list of names"),
    ],
)
def test_a_config_that_was_edited_by_hand_says_so(
    fake_triton: dict[tuple[str, str], float], parameters: dict[str, str], said: str
) -> None:
    from tiercel_serving.runtime.triton import TritonPythonModel

    config: dict[str, Any] = {"name": "chain"}
    if parameters:
        config["parameters"] = {name: {"string_value": value} for name, value in parameters.items()}
    with pytest.raises(Exception, match=f"model chain: config.pbtxt: {said}.*edited by hand: export again"):
        TritonPythonModel().initialize({"model_config": json.dumps(config), "model_repository": "/nowhere"})


def test_a_stage_that_the_release_lacks_is_named(open_model: Open) -> None:
    with pytest.raises(Exception, match="the release has none called cooking; it was edited by hand"):
        open_model("ordering cooking")


def test_a_model_of_another_build_does_not_load(open_model: Open) -> None:
    with pytest.raises(Exception, match="made for build build-2") as caught:
        open_model(build_id="build-2")
    assert type(caught.value).__name__ == "TritonModelException"


def test_the_release_may_be_given_relative_to_the_model(open_model: Open, plain: Tiny) -> None:
    (plain.release.path / "triton" / "chain").mkdir(parents=True, exist_ok=True)
    model = open_model(release="../..")
    assert model.execute([Request(tensors([Ask(plain.user_ids[2])]))])[0].error is None
