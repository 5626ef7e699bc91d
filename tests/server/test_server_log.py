"""Triton's log: the reasons of failures, taken ports, and its last lines."""

from __future__ import annotations

from tiercel_serving.supervise.log import all_unloaded, failure_reasons, port_in_use, tail

NOISE = '2026-11-21T11:01:22Z 7454 E server.cc:241] "CudaDriverHelper has not been initialized."\n'


def test_the_models_own_words_come_out_without_quoting_or_place() -> None:
    text = NOISE + (
        "2026-11-21T11:01:22Z 7 E model_lifecycle.cc:642] \"failed to load 'users' version 1: Internal: "
        'ValueError: wrong build; export again\\n\\nAt:\\n  /x/model.py(3): initialize\\n"\n'
        "error: creating server: Internal - failed to load all models\n"
    )
    assert failure_reasons(text) == ["model users: ValueError: wrong build; export again"]


def test_other_errors_are_taken_if_no_model_failed() -> None:
    text = (
        NOISE
        + "E1121 11:01:22.5 7 x.cc:1] \"Poll failed for model directory 'a'\"\nerror: creating server: no\n"
    )
    assert failure_reasons(text) == ["Poll failed for model directory 'a'", "creating server: no"]
    assert failure_reasons(NOISE) == []


def test_ports_and_tails() -> None:
    text = "E \"failed to start GRPC service: Unavailable - Socket '127.0.0.1:8001' already in use \"\n"
    assert port_in_use(text) == 8001
    assert port_in_use(NOISE) is None
    assert tail("a\n+--+\n| b |\n\nc\n") == ["a", "c"]


def test_models_are_unloaded_when_as_many_have_said_so_as_lived_at_the_last_look() -> None:
    look = 'server.cc:345] "Timeout {}: Found {} live models and 0 in-flight non-inference requests"\n'
    gone = "model_lifecycle.cc:624] \"successfully unloaded '{}' version 1\"\n"
    text = 'Signal (15) received.\nserver.cc:336] "All models are stopped, unloading models"\n'
    assert not all_unloaded(text)
    text += look.format(8, 2) + gone.format("recommend")
    assert not all_unloaded(text)
    assert all_unloaded(text + gone.format("chain"))
    text += look.format(7, 1)
    assert not all_unloaded(text)
    assert all_unloaded(text + gone.format("chain"))
    assert all_unloaded(text + look.format(6, 0))
