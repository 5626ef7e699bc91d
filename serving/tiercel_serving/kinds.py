"""Tables of kinds: name → class, imported on use. Nothing registers itself.

Each variant of something that has many (sources, rules, reorder steps, engines, stores; families and tasks in
``tiercel_pipelines``) is one file with one class, and one row in a literal table::

    SOURCES = Kinds("source", {"popular": Kind("tiercel_serving.sources.popular:Popular")})

The class is its own settings: a frozen ``msgspec.Struct`` whose tag is the row's name, with the methods of
the table's contract. Drivers walk the tables and name no kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, cast

import msgspec

from .errors import KindUnavailable
from .problems import Problem, choose

T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of the settings of a kind, with defaults for methods that most kinds do not need."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves.

        Their values have the right types: types are checked before (:mod:`.mistyped`).
        """
        return []

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it reads."""
        return ()

    def reads(self) -> tuple[str, ...]:
        """Return the names of the tensors that it reads, besides those that its contract provides."""
        return ()


@dataclass(frozen=True)
class Kind:
    """One row of a table.

    Parameters
    ----------
    path
        ``module:class``.
    extra
        The extra that installs the libraries it needs beyond those of its package.
    on_device
        ``module:attribute`` that makes its form in torch, for targets whose stages run on a device; None if
        it has none and runs on the host.
    """

    path: str
    extra: str | None = None
    on_device: str | None = None


def imported(path: str) -> Any:
    """Import and return the object that ``module:attribute`` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Kinds(Generic[T]):
    """A literal table of kinds: ``what`` a kind is called in messages, and name (its class's tag) → row."""

    def __init__(self, what: str, rows: Mapping[str, Kind]) -> None:
        self.what = what
        self.rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def find(self, name: str) -> type[T]:
        """Import the class of a kind.

        Raises
        ------
        KindUnavailable
            There is no such kind, its module can't be imported, or a library that it needs is missing.
        """
        row = self.rows.get(name)
        if row is None:
            raise KindUnavailable(f"there is no {self.what} {name!r}; {choose(name, self.rows)}")
        try:
            with self.using(name):
                return cast("type[T]", imported(row.path))
        except (ImportError, AttributeError) as error:
            raise KindUnavailable(
                f"{self.what} {name!r}: its row says {row.path!r}, which can't be imported ({error}); "
                "correct the row of the table, or the module"
            ) from error

    def form(self, name: str) -> Any:
        """Import the attribute that makes a kind's device form; None if it has none."""
        path = self.rows[name].on_device
        return None if path is None else imported(path)

    @contextmanager
    def using(self, kind: object) -> Iterator[None]:
        """Turn the error of a missing library into one that names the extra to install.

        This is for imports that happen only when a kind, given by name or by settings, is made or opened.

        Raises
        ------
        KindUnavailable
            A library that the kind needs is missing.
        """
        name = kind if isinstance(kind, str) else self.name_of(kind)
        row = self.rows[name]
        try:
            yield
        except ModuleNotFoundError as error:
            if row.extra is None or error.name is None or row.path.startswith(error.name):
                raise
            raise KindUnavailable(
                f"{self.what} {name!r} needs {error.name}, which is not installed; "
                f'run pip install "tiercel[{row.extra}]"'
            ) from error

    def name_of(self, settings: object) -> str:
        """Return the name of the row of a settings object's class; raise KindUnavailable if there is none."""
        if (name := self.row_of(settings)) is not None:
            return name
        kind = type(settings)
        raise KindUnavailable(
            f"{kind.__qualname__} of {kind.__module__} is in no row of the table of {self.what}s; "
            f"{choose(kind.__qualname__, self.rows)}"
        )

    def row_of(self, settings: object) -> str | None:
        """Return the name of the row of a value's class, or None; the table's classes are not imported."""
        path = f"{type(settings).__module__}:{type(settings).__qualname__}"
        return next((name for name, row in self.rows.items() if row.path == path), None)

    def class_names(self) -> dict[str, str]:
        """Return class name, as written in recipes → name of its row."""
        return {row.path.rpartition(":")[2]: name for name, row in self.rows.items()}

    def misfit(self, value: object, field: str) -> list[Problem]:
        """Return the problem of a field's value that is not one of these kinds; nothing if it is."""
        if self.row_of(value) is not None:
            return []
        names = self.class_names()
        # The value may be a row's name instead of its class, or the class without parentheses.
        spelled = {spelling.lower(): name for name, row in names.items() for spelling in (row, name)}
        written = value.__name__ if isinstance(value, type) else str(value)
        close = [spelled[near] for near in get_close_matches(written.lower(), spelled, n=1)] or list(names)
        known = " or ".join(f"{name}(…)" for name in close)
        return [Problem(field, f"expected a {self.what}, got {value!r}", f"write {known}")]

    def read(self, data: Any, hook: Callable[[Any, Any], Any] | None = None) -> T:
        """Make settings from a mapping, whose ``kind`` names the class; ``hook`` is msgspec's ``dec_hook``.

        Raises
        ------
        ValueError
            There is no such kind, or the data does not fit; the message is the codec's.
        KindUnavailable
            The kind is not available on this machine.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            raise ValueError(f"expected an object with the kind of a {self.what}, got {data!r}")
        name = str(data["kind"])
        if name not in self.rows:
            raise ValueError(f"there is no {self.what} {name!r}; {choose(name, self.rows)}")
        try:
            return msgspec.convert(data, self.find(name), dec_hook=hook)
        except msgspec.ValidationError as error:
            raise ValueError(str(error).replace("`$", f"`{name}")) from None
