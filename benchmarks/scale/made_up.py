"""Synthetic data of items in clusters, and users who mostly stay in one. A seed always gives equal data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.scale.sizes import Size
from tiercel_serving.spec import Array

#: Distance of items from the centre of their cluster, which has length 1.
SPREAD = 0.3
#: The standard deviation of the j-th dimension is proportional to 1 / j to this power, since singular values
#: of trained embeddings decay too. (With equal deviations clusters are isolated and everything outside one is
#: equally far away, where no index helps. No real catalogue is like that.)
DECAY = 1.0
#: Share of a user's events that lie in the user's own cluster.
FAITHFUL = 0.8
#: Number of lots of items. Rules let some lots pass: share of the items → lots below this number.
LOTS = 2000
RULES = {"50%": LOTS // 2, "1%": LOTS // 100, "0.05%": 1}
#: Kinds of items.
KINDS = ("tool", "toy", "gift", "book")


@dataclass(frozen=True)
class MadeUp:
    """Synthetic data: frames, and item vectors ``[I, D]`` in the order of the items."""

    items: pd.DataFrame
    users: pd.DataFrame
    interactions: pd.DataFrame
    vectors: Array


def make_up(size: Size, *, text_ids: bool = False, seed: int = 0) -> MadeUp:
    """Generate the data of a size.

    Parameters
    ----------
    size
        Numbers of items, users and events.
    text_ids
        Whether ids are text of 14 characters instead of integers.
    seed
        Random seed of all data.
    """
    random = np.random.default_rng(seed)
    vectors = item_vectors(size, random)
    item_ids = _ids("item", random.permutation(size.items * 3)[: size.items], text_ids)
    user_ids = _ids("user", random.permutation(size.users * 3)[: size.users], text_ids)
    items = pd.DataFrame(
        {
            "item_id": item_ids,
            "kind": np.array(KINDS, object)[random.integers(0, len(KINDS), size.items)],
            "price": random.gamma(2, 20, size.items),
            "lot": random.permutation(size.items) % LOTS,
            "title": [f"Thing {number}" for number in range(size.items)],
        }
    )
    users = pd.DataFrame({"user_id": user_ids, "age": random.integers(15, 80, size.users)})
    by, of = _events(size, random)
    interactions = pd.DataFrame(
        {
            "user_id": user_ids[by],
            "item_id": item_ids[of],
            "timestamp": random.integers(0, 10**9, len(by)),
        }
    )
    return MadeUp(items, users, interactions, vectors)


def item_vectors(size: Size, random: np.random.Generator) -> Array:
    """Return unit vectors ``[I, D]`` float32; item i is in cluster ``i * clusters // I``."""
    scale = (np.arange(1, size.dimension + 1) ** -DECAY).astype(np.float32)
    scale /= np.sqrt(np.mean(scale**2))
    centres = random.normal(size=(size.clusters, size.dimension)).astype(np.float32) * scale
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = random.standard_normal((size.items, size.dimension), np.float32)
    vectors *= scale * np.float32(SPREAD / np.sqrt(size.dimension))
    vectors += centres[np.arange(size.items) * size.clusters // size.items]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def heavy_users(size: Size) -> Array:
    """Return the rows of the heavy users, evenly spread over all users."""
    return np.linspace(0, size.users - 1, size.heavy).astype(np.int64)


def _ids(prefix: str, numbers: Array, text: bool) -> Array:
    if not text:
        return numbers + 1000
    return np.array([f"{prefix}-{number:09d}" for number in numbers.tolist()], object)


def _events(size: Size, random: np.random.Generator) -> tuple[Array, Array]:
    """Return user and item rows of all events; each user has at least one, and heavy users have many."""
    heavy = heavy_users(size)
    each = min(size.heavy_events, size.items // 2)
    light = size.events - each * len(heavy) - size.users
    # A product of two draws is skewed: some users have a hundred times the events of others.
    drawn = (random.random(light) * random.random(light) * size.users).astype(np.int64)
    by = np.concatenate([np.arange(size.users), drawn])
    own = _near(by * 7919 % size.clusters, size, random)
    anywhere = (random.random(len(by)) ** 2 * size.items).astype(np.int64)
    of = np.where(random.random(len(by)) < FAITHFUL, own, anywhere)
    # A heavy user has had most items of some clusters, and as many elsewhere.
    clusters = max(2, size.clusters * each // (2 * size.items))
    some = []
    for user in heavy.tolist():
        near = ((user * 7919 + np.arange(clusters)) % size.clusters)[random.integers(0, clusters, each)]
        mine = np.concatenate([_near(near, size, random), random.integers(0, size.items, each)])
        some.append(random.permutation(pd.unique(mine))[:each])
    by = np.concatenate([by, np.repeat(heavy, [len(mine) for mine in some])])
    return by, np.concatenate([of, *some])


def _near(clusters: Array, size: Size, random: np.random.Generator) -> Array:
    """Return a random item of each cluster in ``clusters``."""
    begins = -(-clusters * size.items // size.clusters)
    ends = -(-(clusters + 1) * size.items // size.clusters)
    return begins + (random.random(len(clusters)) * (ends - begins)).astype(np.int64)
