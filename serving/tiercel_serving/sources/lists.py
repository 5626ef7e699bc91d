"""``lists``: the user's query selects one of several lists of items, such as that of the nearest cluster.

The selected list is that whose key has the largest inner product with the query; ties go to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidSettings
from ..kinds import Settings
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, first_allowed, sort_by_score
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .table import Made, Material, UserTensors

_NOTHING = np.float32(-np.inf)


class Lists(Settings, frozen=True, tag="lists"):
    """Items of one of the lists that a retrieval model provides.

    Parameters
    ----------
    name
        Its name in ``--explain``; the retrieval model of this name gives queries, keys and lists.
    quota
        Number of candidates that it may give; None is what the other quotas leave.
    """

    name: str
    quota: int | None = None

    personal: ClassVar[bool] = True
    form: ClassVar[str | None] = "lists"

    @property
    def query(self) -> str:
        """The name of its query tensor, ``[B, D]`` float32."""
        return f"query_{self.name}"

    def reads(self) -> tuple[str, ...]:
        """Return the name of its query tensor."""
        return (self.query,)

    def make(self, material: Material) -> Made:
        """Keep ``keys [C, D]``, and each list's allowed items: ``offsets [C + 1]``, ``rows``, ``scores``.

        Raises
        ------
        InvalidSettings
            The form is not a set of lists over the catalogue; see :func:`checked_lists`.
        """
        form = checked_lists(material.form, material.items, self.name)
        if material.allowed is not None and not material.allowed.all():
            kept = material.allowed[form["rows"]]
            form["offsets"] = np.append(0, np.cumsum(kept))[form["offsets"]]
            form["rows"], form["scores"] = form["rows"][kept], form["scores"][kept]
        return Made(form, figures={"lists": len(form["keys"]), "listed": len(form["rows"])})

    def open(self, artefact: Artefact, items: int, threads: int) -> ListedItems:
        """Open the lists."""
        return ListedItems(self.query, {name: artefact.array(name) for name in _FORM}, items)

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the first allowed items of the chosen list."""
        chosen = int(np.argmax(np.einsum("cd,d->c", arrays["keys"], user[self.query])))
        part = slice(int(arrays["offsets"][chosen]), int(arrays["offsets"][chosen + 1]))
        listed = zip(arrays["rows"][part].tolist(), arrays["scores"][part].tolist(), strict=True)
        return [(row, score) for row, score in listed if allowed[row]][:count]


_FORM: Mapping[str, Any] = {
    "keys": np.float32,
    "offsets": np.int64,
    "rows": np.int32,
    "scores": np.float32,
}


def checked_lists(form: Mapping[str, Any], items: int, name: str) -> dict[str, Array]:
    """Return the arrays of a form, each list sorted by (score descending, row ascending).

    Raises
    ------
    InvalidSettings
        An array is missing, keys or scores are not finite, or the arrays do not fit together.
    """
    what = f"lists {name!r}"
    if missing := [array for array in _FORM if array not in form]:
        raise InvalidSettings(f"{what}: expected {', '.join(_FORM)}, got no {missing[0]}; give all")
    arrays = {key: np.asarray(form[key], dtype) for key, dtype in _FORM.items()}
    keys, offsets, rows, scores = (arrays[key] for key in _FORM)
    if keys.ndim != 2 or not len(keys) or not np.isfinite(keys).all():
        raise InvalidSettings(f"{what}: expected finite keys [C, D], at least one, got {keys.shape}")
    fits = len(offsets) == len(keys) + 1 and offsets[0] == 0 and offsets[-1] == len(rows) == len(scores)
    if not fits or (np.diff(offsets) < 0).any() or ((rows < 0) | (rows >= items)).any():
        raise InvalidSettings(
            f"{what}: offsets, rows and scores are not {len(keys)} lists of rows below {items}; "
            "give one for each key"
        )
    if not np.isfinite(scores).all():
        raise InvalidSettings(f"{what}: scores must be finite; give finite numbers")
    order = np.lexsort((rows, -scores, np.repeat(np.arange(len(keys)), np.diff(offsets))))
    return {"keys": keys, "offsets": offsets, "rows": rows[order], "scores": scores[order]}


class ListedItems:
    """Lists of items, each with a key.

    Parameters
    ----------
    query
        The name of the query tensor.
    arrays
        ``keys [C, D]``, ``offsets [C + 1]``, ``rows [n]`` and ``scores [n]``.
    items
        I, the pad row.
    """

    def __init__(self, query: str, arrays: Arrays, items: int) -> None:
        self._query, self._keys, self._offsets = query, arrays["keys"], arrays["offsets"]
        # The place after the last holds the pad row.
        self._rows = np.append(arrays["rows"], items).astype(np.int64)
        self._scores = np.append(arrays["scores"], _NOTHING).astype(np.float32)

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the first ``count`` allowed items of each user's list."""
        chosen = np.einsum("bd,cd->bc", arrays[self._query], self._keys).argmax(axis=1)
        first, end = self._offsets[chosen, None], self._offsets[chosen + 1, None]
        width = max(int((end - first).max(initial=0)), 1)
        places = first + np.arange(width)
        places = np.where(places < end, places, len(self._rows) - 1)
        found, real = first_allowed(mask.allows(self._rows[places]), count)
        picked = np.take_along_axis(places, found, axis=1)
        if real is not None:
            picked = np.where(real, picked, len(self._rows) - 1)
        return sort_by_score(self._scores[picked], self._rows[picked])
