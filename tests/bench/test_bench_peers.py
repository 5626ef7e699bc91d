"""The load over HTTP, and the environment of the hand-written service."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import find_python
from benchmarks.peers.http_load import HttpJob, send_http
from tiercel_serving.errors import BenchError


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[int] = []  # noqa: RUF012

    def do_POST(self):
        user = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["user_id"]
        self.asked.append(user)
        body = b"{}"
        self.send_response(200 if user >= 0 else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def job(port, *users, concurrency=2):
    bodies = tuple(json.dumps({"user_id": user}).encode() for user in users)
    return HttpJob("127.0.0.1", port, "/recommend", bodies, 0.1, concurrency)


def test_every_body_is_sent_and_answers_are_timed(port):
    found = send_http(job(port, 1, 2, 3, 4))
    assert {1, 2, 3, 4} <= set(Answer.asked)
    assert found.throughput > 10
    assert 0 < found.p50_us <= found.p99_us


def test_a_refusal_ends_it(port):
    with pytest.raises(RuntimeError, match="/recommend: 404"):
        send_http(job(port, -1, -1))


def test_a_python_that_is_named_is_taken(tmp_path):
    assert find_python(tmp_path / "python", tmp_path / "none") == tmp_path / "python"


@pytest.mark.parametrize("broken", ["venv", "pip"])
@pytest.mark.parametrize("error", [BenchError, KeyboardInterrupt])
def test_an_environment_that_was_not_finished_is_built_again(broken, error, tmp_path, monkeypatch):
    python, commands, breaks = tmp_path / "bin" / "python", [], [True]

    def run(command):
        commands.append(command[2])
        python.parent.mkdir(exist_ok=True)
        python.touch()
        if breaks[0] and command[2] == broken:
            raise error

    monkeypatch.setattr(environment, "_run", run)
    with pytest.raises(error):
        find_python(None, tmp_path)
    breaks[0] = False
    commands.clear()
    for _ in range(2):
        assert find_python(None, tmp_path) == python
        assert commands == ["venv", "pip"]
