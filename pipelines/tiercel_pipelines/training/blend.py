"""The weights of a blend's sources, chosen on the validation part.

Scores of different models differ in scale and merit, and the best weights depend on the data: on ml-100k
EASE and ALS are best added unscaled, on MovieLens latest-small EASE counts eight times as much. The search
begins with the recipe's weights. The first weight is fixed, since it sets the scale. Each other weight is
tried, one after another, at 0 and at powers of two times its value; the value with the best nDCG@10 on the
validation part is kept, and with a tie the recipe's value. A source of weight 0 is left out of the blend: on
Steam-200K ALS only harms, however small its weight. Its candidates stay, and are scored by the others.
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

#: Factors that are tried on a weight. Below a sixteenth, the other scores decide almost everything.
FACTORS = (0.0, *(2.0**power for power in range(-4, 5)))


def chosen_blend(
    settings: ServingSettings,
    models: Mapping[str, FittedRetrieval],
    packed: Packed,
    seen: Pairs,
    held_out: Pairs,
    users: IntArray,
) -> ServingSettings:
    """Return the settings with the blend weights that give the best nDCG@10.

    Parameters
    ----------
    models, seen
        Retrieval models that were trained without ``held_out``, and the interactions that they know.
    held_out, users
        Interactions to find, and the users to measure: ``[M]`` user rows, ascending.
    """
    # Seen items that may be recommended again are never among the held-out ones.
    asked = msgspec.structs.replace(settings, allow_seen=False, seen_again_days=None)
    retrieval = OfflineRetrieval(asked, models, packed, seen)
    parts = [retrieval.terms(block) for block in blocks(users)]
    # The candidates do not depend on the weights: each source fills its quota by its own scores.
    rows = np.concatenate([part[0] for part in parts])
    terms = np.concatenate([part[1] for part in parts], axis=1)

    def found(weights: list[float]) -> float:
        counted = np.flatnonzero(weights)  # the scores of padding are infinite
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
