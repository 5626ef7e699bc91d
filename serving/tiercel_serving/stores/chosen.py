"""A store as named on a command line or in a model's config: ``KIND``, ``KIND:TEXT``, or JSON settings."""

from __future__ import annotations

import msgspec

from ..errors import InvalidSettings
from .table import STORES, StoreKind


def read_store(text: str) -> StoreKind:
    """Return the settings of a store.

    Parameters
    ----------
    text
        ``embedded:/var/lib/tiercel``, ``redis:HOST:PORT``, ``memory_mapped`` (no store, even if the release
        names one), or JSON such as ``{"kind": "redis", "url": "redis://HOST:PORT/0", "timeout_ms": 50}``.

    Raises
    ------
    KindUnavailable
        There is no such kind, or its library is not installed.
    InvalidSettings
        The settings do not fit the kind, or have problems.
    """
    try:
        if text.lstrip().startswith("{"):
            store = STORES.read(msgspec.json.decode(text))
        else:
            kind, _, rest = text.partition(":")
            store = STORES.find(kind.strip()).of_text(rest)
    except (ValueError, TypeError) as error:
        raise InvalidSettings(f"store {text!r}: {error}; write KIND:TEXT or JSON with its kind") from error
    wrong = store.problems()
    if wrong:
        raise InvalidSettings(f"store {text!r}: {'; '.join(map(str, wrong))}")
    return store


def write_store(store: StoreKind) -> str:
    """Return the text that :func:`read_store` reads as these settings."""
    return msgspec.json.encode(store).decode()
