"""Plain HTTP in front of Triton: it limits and parses bodies, and forwards requests over gRPC.

Triton's own HTTP is never started, because one request to it can crash the server for everybody: a body of
some MiB before 2.59.1 (container 25.07), nested brackets before 2.58 (25.05), a shape that is too large
before 2.68 (26.04). The embedded Triton is 2.51.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from aiohttp import web
from aiohttp.http import HttpProcessingError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..errors import InvalidRequest
from .kserve import plain, read_request, write_answer

#: Largest body in bytes: 64 users with 10,000 exclusions each fit. For more there is gRPC.
MAX_BODY = 16 << 20

#: Requests that are processed concurrently; others wait.
WORKERS = 8

#: Timeout of a request to Triton, in seconds.
DEADLINE_S = 60.0

#: On shutdown, seconds between the end of waiting for Triton and that of all connections.
LAST_ANSWERS_S = 0.3

#: Seconds in which a body must arrive, and in which a connection must complete a request's head. A client
#: that sends a byte now and then must not occupy what others need.
BODY_S, IDLE_S = 60.0, 30.0

#: Seconds between two checks of the connections.
LOOK_S = 1.0

#: The header with the number of bytes of a body that are JSON; tensors follow.
JSON_SIZE = "Inference-Header-Content-Length"

#: gRPC status → HTTP status; all others are 500.
_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.CANCELLED: 503,  # by this server, when it stops
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

_CHANNEL = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"

#: Path → method of the stub, its message, and the boolean field that is the answer.
_READY = {
    "/v2/health/live": ("ServerLive", service_pb2.ServerLiveRequest, "live"),
    "/v2/health/ready": ("ServerReady", service_pb2.ServerReadyRequest, "ready"),
    f"{_MODEL}/ready": ("ModelReady", service_pb2.ModelReadyRequest, "ready"),
    f"{_VERSION}/ready": ("ModelReady", service_pb2.ModelReadyRequest, "ready"),
}

#: Path → method of the stub, and its message; the response is returned as JSON.
_TOLD = {
    "/v2": ("ServerMetadata", service_pb2.ServerMetadataRequest),
    _MODEL: ("ModelMetadata", service_pb2.ModelMetadataRequest),
    _VERSION: ("ModelMetadata", service_pb2.ModelMetadataRequest),
}

#: aiohttp would log a traceback for each malformed request. That is the client's fault, and gets a response.
_MUTED = logging.getLogger(f"{__name__}.aiohttp")
_MUTED.setLevel(logging.CRITICAL)
_LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpFront:
    """Serves KServe's HTTP at an address, in a thread, by forwarding to a Triton over gRPC.

    Parameters
    ----------
    host, port
        Where it listens.
    grpc_url
        ``host:port`` of Triton's gRPC.

    Raises
    ------
    OSError
        The port is not available.
    """

    def __init__(self, host: str, port: int, grpc_url: str) -> None:
        self._channel = grpc.insecure_channel(grpc_url, options=_CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._workers = ThreadPoolExecutor(WORKERS, "tiercel-http")
        # Half of the file descriptors, because the rest of this process needs some too.
        self._connections = _Connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._watch: asyncio.Task[None] | None = None
        # How long a shutdown may take is for ``close`` to say.
        self._runner = web.AppRunner(self._app(), access_log=None, logger=_MUTED, shutdown_timeout=86_400)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tiercel-http", daemon=True)
        self._thread.start()
        try:
            self._run(self._listen(host, port))
        except BaseException:
            self.close()
            raise

    def close(self, grace_s: float = 0.0) -> float:
        """Stop listening, give requests in progress ``grace_s`` at most to end, and fail the others.

        Returns
        -------
        How much of ``grace_s`` is left; not below 0.
        """
        ends = time.monotonic() + grace_s
        self._run(self._end(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._channel.close()
        self._workers.shutdown()
        return max(ends - time.monotonic(), 0.0)

    async def _end(self, grace_s: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        # First fail requests that wait for Triton; once these are answered, those that are still arriving.
        self._loop.call_later(max(grace_s, 0.0), self._channel.close)
        self._loop.call_later(max(grace_s, 0.0) + LAST_ANSWERS_S, self._close_all)
        await self._runner.cleanup()
        # Connections that were closed forcibly may not have noticed yet.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _close_all(self) -> None:
        for connection in self._runner.server.connections if self._runner.server is not None else ():
            connection.force_close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self, host: str, port: int) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self._watch = asyncio.create_task(self._connections.watch(self._runner))

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._connections.counted, _in_json])
        for path, (method, message, field) in _READY.items():
            app.router.add_get(path, self._told(method, message, field))
        for path, (method, message) in _TOLD.items():
            app.router.add_get(path, self._told(method, message))
        for path in (f"{_MODEL}/infer", f"{_VERSION}/infer"):
            app.router.add_post(path, self._infer)
        return app

    def _told(self, method: str, message: Any, field: str | None = None) -> Handler:
        """Return a handler that answers with a message of Triton's, or 200 or 400 for one of its fields."""

        async def handle(request: web.Request) -> web.Response:
            call = getattr(self._stub, method)
            said = await self._work(lambda: call(message(**request.match_info), timeout=DEADLINE_S))
            if field is not None:
                return web.Response(status=200 if getattr(said, field) else 400)
            return web.json_response(plain(said))

        return handle

    async def _infer(self, request: web.Request) -> web.Response:
        body, where = await asyncio.wait_for(request.read(), BODY_S), request.match_info
        size = _json_size(request.headers.get(JSON_SIZE), len(body))

        def answer() -> tuple[bytes, int | None]:
            asked, binary = read_request(where["name"], where.get("version", ""), body, size)
            return write_answer(self._stub.ModelInfer(asked, timeout=DEADLINE_S), binary)

        payload, size = await self._work(answer)
        if size is None:
            return web.Response(body=payload, content_type="application/json")
        headers = {JSON_SIZE: str(size)}
        return web.Response(body=payload, content_type="application/octet-stream", headers=headers)

    async def _work(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


class _Connections:
    """Closes idle connections: before a request, between two, or in the middle of a head.

    Parameters
    ----------
    most
        The number of connections that may be idle; of more, the longest idle are closed at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_work: set[Any] = set()
        # Idle connection → since when, the longest idle first.
        self._idle: dict[Any, float] = {}

    @web.middleware
    async def counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark the connection as active while its request is handled."""
        connection = request.protocol
        self._at_work.add(connection)
        self._idle.pop(connection, None)
        try:
            return await handler(request)
        finally:
            self._at_work.discard(connection)

    async def watch(self, runner: web.AppRunner) -> None:
        """Check the connections periodically, until the server is gone."""
        while (server := runner.server) is not None:
            self.look(server.connections, asyncio.get_running_loop().time())
            await asyncio.sleep(LOOK_S)

    def look(self, connections: Sequence[Any], now: float) -> None:
        """Close those that were idle for too long, and the longest idle if there are too many."""
        there = set(connections)
        self._idle = {one: since for one, since in self._idle.items() if one in there}
        for one in connections:
            if one not in self._at_work:
                self._idle.setdefault(one, now)
        beyond = len(self._idle) - self._most
        for place, (one, since) in enumerate(list(self._idle.items())):
            if place < beyond or now - since > IDLE_S:
                del self._idle[one]
                one.force_close()


def _json_size(said: str | None, size: int) -> int | None:
    """Return how many bytes of a body are JSON according to its header; None without one."""
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 20 and int(said) <= size):
        raise InvalidRequest(f"{JSON_SIZE}: expected at most the {size} bytes of the body, got {said[:40]!r}")
    return int(said)


@web.middleware
async def _in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as Triton does, with a status and a JSON object with the key ``error``."""
    try:
        return await handler(request)
    except (InvalidRequest, ValueError, web.RequestPayloadError) as error:
        return _error(400, str(error))
    except asyncio.TimeoutError:
        return _error(408, f"the body did not come within {BODY_S:g} seconds")
    except grpc.RpcError as error:
        return _error(_STATUS.get(error.code(), 500), error.details())
    except web.HTTPRequestEntityTooLarge:
        said = f"a body may have {MAX_BODY} bytes at most; send fewer users or ids at once, or use gRPC"
        return _error(413, said)
    except web.HTTPNotFound:
        return _error(404, f"there is no {request.path}; this is inference over HTTP, and gRPC has the rest")
    except web.HTTPException as error:
        return _error(error.status, error.reason)
    except (ConnectionError, HttpProcessingError):
        raise  # the client is gone, or aiohttp answers
    except Exception:
        _LOG.exception("%s %s", request.method, request.path)
        return _error(500, "this is a fault of the server, whose log has it")


def _error(status: int, said: str | None) -> web.Response:
    return web.json_response({"error": said or "no message"}, status=status)
