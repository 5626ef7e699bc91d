"""The weights of a blend's sources, chosen on the validation part.

Scores of different models have different scales and merits, which change with the data: on ml-100k EASE and
ALS are best added up as they are, on MovieLens latest-small EASE counts eight times as much. The weights of a
recipe are where the search begins; each but the first, which is the scale, is tried at powers of two of it
and at nothing, the others as they are, and what finds most of the validation part is kept. What is tied stays
as written. A source that weighs nothing is left out of the blend: on Steam-200K ALS only harms, however
little it weighs. Its candidates stay, and are scored by the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from tiercel_serving.ranked.order import sort_by_score
from tiercel_serving.settings import ServingSettings

from ..arrays.packed import Packed
from ..arrays.pairs import IntArray, Pairs
from ..families.table import FittedRetrieval
from ..offline.in_memory import OfflineRetrieval, blocks
from .judges import JUDGED_AT, ndcg

#: What a weight is multiplied by. Beyond a sixteenth the other scores decide nearly alone.
FACTORS = (0.0, *(2.0**power for power in range(-4, 5)))


def chosen_blend(
    settings: ServingSettings,
    models: Mapping[str, FittedRetrieval],
    packed: Packed,
    seen: Pairs,
    held_out: Pairs,
    users: IntArray,
) -> ServingSettings:
    """Return the settings with the weights that find most.

    Parameters
    ----------
    models, seen
        Retrieval that does not know what is held out, and what it knows.
    held_out, users
        What shall be found, and of whom: ``[M]``, ascending.
    """
    # What comes again is never among what was held out.
    asked = msgspec.structs.replace(settings, allow_seen=False, seen_again_days=None)
    retrieval = OfflineRetrieval(asked, models, packed, seen)
    parts = [retrieval.terms(block) for block in blocks(users)]
    # Whatever the weights, the candidates are the same: each source gives its quota by its own scores.
    rows = np.concatenate([part[0] for part in parts])
    terms = np.concatenate([part[1] for part in parts], axis=1)

    def found(weights: list[float]) -> float:
        counted = np.flatnonzero(weights)  # the scores of empty places are infinite
        total = np.tensordot(np.array(weights, np.float32)[counted], terms[counted], 1)
        best = sort_by_score(np.where(rows == packed.n_items, np.float32(-np.inf), total), rows)[1]
        return ndcg(best[:, :JUDGED_AT], users, held_out, packed.n_items)

    names, weights = [name for name, _ in settings.blend], [weight for _, weight in settings.blend]
    most = found(weights)
    for place in range(1, len(weights)):
        written = weights[place]
        for factor in FACTORS:
            tried = [*weights[:place], written * factor, *weights[place + 1 :]]
            if (value := found(tried)) > most:
                weights, most = tried, value
    blend = tuple((name, weight) for name, weight in zip(names, weights, strict=True) if weight)
    return msgspec.structs.replace(settings, blend=blend)
