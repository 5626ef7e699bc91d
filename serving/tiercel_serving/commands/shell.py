"""What commands share: two kinds of output, progress, errors, signals, exit codes.

Standard output has only the result: a table for people, or with ``--json`` exactly one JSON object. All other
output, also that of libraries, goes to standard error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json as json_module
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import IO, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from ..errors import TiercelError
from ..machine_faults import fault_behind
from .extras import extra_of_command, missing_library
from .pace import Pace

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; everything else goes to standard error.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")]

#: Called as ``progress(what, done, total)`` during long work; ``total`` is None if it is unknown.
Report = Callable[[str, int, int | None], None]

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143

#: Errors of an invalid request, which exit with code 2; by name, so that their modules are not imported.
REFUSED = frozenset(
    {
        "ExportInputError",
        "InvalidInput",
        "InvalidRequest",
        "InvalidSettings",
        "KindUnavailable",
        "PortTaken",
        "RecipeError",
        "Refused",
        "ReleaseMissing",
        "RequestRefused",
        "RunMissing",
        "StoreMismatch",
    }
)


#: Errors of a path given to a command, such as a folder instead of a file, or a name that is too long.
PATH_ERRORS = frozenset(
    {
        *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG),
        *(errno.ELOOP, errno.EXDEV, errno.EBUSY, errno.ETXTBSY, errno.ESPIPE),
    }
)


class Refused(TiercelError):
    """The command line is invalid; exit code 2."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, it is not caught by ``except Exception``."""


class Shell:
    """The output of a command, made by :func:`shell`; the result has its own stream."""

    def __init__(self, json: bool, result: IO[str]) -> None:
        self.json = json
        self.err = _console(sys.stderr)
        self._result = result
        self._out = _console(result)
        self._emitted = False

    def emit(self, document: Mapping[str, Any], *renderables: RenderableType) -> None:
        """Print the result: ``document`` as JSON with ``--json``, else ``renderables`` for people."""
        if not self.json:
            for renderable in renderables:
                # A line of text is never wrapped, because it may be a command to copy.
                self._out.print(renderable, highlight=False, soft_wrap=isinstance(renderable, str))
        else:
            if self._emitted:
                raise RuntimeError("a command prints one JSON object, and this would be the second")
            text = json_module.dumps(document, ensure_ascii=False, default=_plain)
            self._result.write(text + "\n")
        self._emitted = True
        self._result.flush()

    def note(self, text: str, *, style: str = "") -> None:
        """Print a message on standard error."""
        self.err.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def fail(self, error: BaseException, debug: bool) -> int:
        """Print an error, and return the exit code for it."""
        missing = None
        if isinstance(error, ModuleNotFoundError):
            missing = missing_library(error, extra_of_command.get())
        fault = fault_behind(error)
        if fault is not None:
            fault.__cause__, error = error, fault
        path = wrong_path(error)
        known = missing is not None or path is not None or _is_ours(error)
        message = missing or path or str(error)
        text = message if known else f"unexpected {type(error).__name__}: {error}"
        if debug:
            self.note("".join(traceback.format_exception(error)), style="dim")
        elif not known:
            text += "\nThis is a defect of Tiercel; --debug shows where it happened."
        try:
            self.err.print(f"[bold red]error[/] {escape(text)}", highlight=False, soft_wrap=True)
        except (OSError, MemoryError, ImportError):  # rich imports modules while it prints
            sys.stderr.write(f"error {text}\n")
        if self.json and not self._emitted:
            self.emit({"error": {"type": type(error).__name__, "message": message}})
        return USAGE if missing or path or (known and _is_refused(error)) else FAILED

    @contextlib.contextmanager
    def work(self, title: str, *, steps: bool = False) -> Iterator[Report]:
        """Show a progress bar with a title during long work; yield the callback that updates it.

        With ``steps`` the callback counts the steps of one piece of work, and ``what`` is the step's name.
        Without, each ``what`` is a piece of work with its own line; text after "; " in it is a status. If
        standard error is not a terminal, a line is printed when work begins, at each further tenth, and each
        minute if at least a percent was done. Long work also shows the remaining time.
        """
        if not self.err.is_terminal:
            yield self._plain_report(title)
            return
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", table_column=Column()),  # a long text wraps beside its bar
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with Progress(*columns, console=self.err, transient=True) as bars:
            first = bars.add_task(escape(title), total=None)
            yield self._bar_report(bars, first, steps)

    def _plain_report(self, title: str) -> Report:
        self.note(f"{title} …")
        paces: dict[str, Pace] = {}

        def report(what: str, done: int, total: int | None) -> None:
            name, _, state = what.partition("; ")
            said = paces.setdefault(name, Pace()).says(done, total)
            if said is not None:
                self.note(f"  {name}{said}" + (f"; {state}" if state else ""))

        return report

    def _bar_report(self, bars: Progress, first: TaskID, steps: bool) -> Report:
        tasks = {"": first} if steps else {}

        def report(what: str, done: int, total: int | None) -> None:
            name = "" if steps else what.partition("; ")[0]
            if not tasks:
                bars.update(first, visible=False)
            if name not in tasks:
                tasks[name] = bars.add_task("", total=total)
            bars.update(tasks[name], description=escape(what), completed=done, total=total)

        return report


def checked_url(url: str | None) -> str | None:
    """Return a server's gRPC address; refuse one without a port, for which gRPC would use a default port."""
    port = "" if url is None else url.rpartition(":")[2]
    if url is None or url.startswith("unix:") or port.isdecimal():
        return url
    raise typer.BadParameter(f"{url!r}: expected HOST:PORT, such as localhost:8001")


@contextlib.contextmanager
def shell(*, json: bool = False, debug: bool = False) -> Iterator[Shell]:
    """Run a command's work with its options, and convert its outcome to an exit code."""
    with _result_stream() as result, _terminate_by_exception():
        sh = Shell(json, result)
        try:
            yield sh
        except BrokenPipeError:  # the reader is gone, as with `| head`
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            sh.note("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Terminated:
            sh.note("Terminated.")
            raise typer.Exit(TERMINATED) from None
        except Exception as error:
            if _is_typers(error):
                raise
            raise typer.Exit(sh.fail(error, debug)) from None


@contextlib.contextmanager
def _result_stream() -> Iterator[IO[str]]:
    """Yield the result's stream, and redirect all other standard output to standard error.

    Libraries may print to standard output, some of them from C, so the file descriptor itself is redirected.
    """
    stdout = sys.stdout
    stdout.flush()
    try:
        redirectable = stdout.fileno() == 1
    except (OSError, io.UnsupportedOperation):
        redirectable = False
    if not redirectable:
        with contextlib.redirect_stdout(sys.stderr):
            yield stdout
        return
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        result = os.fdopen(os.dup(saved), "w", encoding=stdout.encoding, errors="replace")
        try:
            yield result
        finally:
            with contextlib.suppress(OSError):
                result.close()
    finally:
        with contextlib.suppress(OSError):
            stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _terminate_by_exception() -> Iterator[None]:
    """Make SIGTERM unwind the stack, so that incomplete work is cleaned up."""

    def handler(number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the clean-up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _console(stream: IO[str]) -> Console:
    # Without emoji, because `:x:` in a title or a path would become one.
    console = Console(file=stream, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A pipe has no width; this is wide enough that no cell is cut.
        console.width = 160
    return console


def wrong_path(error: BaseException) -> str | None:
    """Return the message for an error of a path that a command was given; None for other errors."""
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object!r}: this name is no UTF-8, which a library needs; rename it"
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # Python 3.12 and older
        return f"{error}; correct the path, or name another"
    if not isinstance(error, OSError) or error.errno not in PATH_ERRORS or not error.filename:
        return None
    # Files are written under a temporary name and then renamed, so name the destination.
    name = error.filename2 or error.filename
    return f"{os.fsdecode(name)}: {os.strerror(error.errno)}; correct the path, or name another"


def _is_ours(error: BaseException) -> bool:
    """Return whether an error is Tiercel's own; the client's errors have another base class."""
    if isinstance(error, TiercelError):
        return True
    return any(base.__module__.startswith("tiercel_client") for base in type(error).__mro__)


def _is_refused(error: BaseException) -> bool:
    return any(base.__name__ in REFUSED for base in type(error).__mro__)


def _is_typers(error: BaseException) -> bool:
    return any(base.__module__.startswith(("typer", "click")) for base in type(error).__mro__)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
