"""A worker process for tests that kill it, or that may crash it with damaged data."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any


class Worker:
    """A forked process that calls ``make`` once, and then methods of the object that this returned.

    An embedded store that the worker opens may not be open in the parent: LMDB does not survive a fork.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        there, self._ask = os.pipe()
        self._told, back = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._ask)
                os.close(self._told)
                _work(make, os.fdopen(there, "rb"), os.fdopen(back, "wb"))
            finally:
                os._exit(1)
        os.close(there)
        os.close(back)
        self._in, self._out = os.fdopen(self._ask, "wb"), os.fdopen(self._told, "rb")

    def send(self, name: str, *arguments: Any, **options: Any) -> None:
        """Begin a call."""
        pickle.dump((name, arguments, options), self._in)
        self._in.flush()

    def result(self) -> Any:
        """Wait for the result of the call, or raise its exception; EOFError if the process died."""
        ok, value = pickle.load(self._out)
        if not ok:
            raise value
        return value

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.send(name, *arguments, **options)
        return self.result()

    def kill(self) -> int:
        """End the process by SIGKILL unless it has ended; return its exit status."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            _, self.status = os.waitpid(self._pid, 0)
            self._pid = 0
            self._in.close()
            self._out.close()
        return self.status


def _work(make: Callable[[], Any], ask: Any, tell: Any) -> None:
    try:
        made = make()
        first = (True, None)
    except Exception as error:
        first = (False, error)
    pickle.dump(first, tell)
    tell.flush()
    while True:
        name, arguments, options = pickle.load(ask)
        try:
            answer = (True, getattr(made, name)(*arguments, **options))
        except Exception as error:
            answer = (False, type(error)(str(error)))
        pickle.dump(answer, tell)
        tell.flush()
