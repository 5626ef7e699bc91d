from __future__ import annotations

from tiercel_serving.supervise.log import failure_reasons, port_in_use, tail

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
