"""Made-up data with real structure, so that models have something to learn without any download.

Every item has one to three genres, every user one to three tastes; both are points in one latent
space, and a user picks items by ``exp(taste + popularity + noise)`` without repeats. The columns
reflect the latent structure, some of them clearly (genres, interests), some faintly (age, price).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import COUNT, SEED, Problem, out_of_range

from .dataset import Dataset, Progress

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GENRES = (
    "action",
    "comédie",
    "drama",
    "documentaire",
    "fantasy",
    "ужасы",
    "音楽",
    "romance",
    "sci-fi",
    "western",
)
COUNTRIES = ("France", "España", "Österreich", "Türkiye", "日本", "Suomi", "Perú", "India")
DEVICES = ("phone", "tablet", "télé", "desktop")
_MAKERS = ("Atelier", "Bjørk", "Cañón", "Dvořák", "Élan", "Fjäll", "Gül", "北斗", "Iris", "Jökull")
_DIMENSIONS = 12
_DAY = 86_400
_START = 1_577_836_800  # 2020-01-01 00:00 UTC
#: A block of users picks from at most this many items, so that memory stays bounded at any size.
_POOL = 4_096
_BLOCK = 512


class Synthetic(Settings, frozen=True, tag="Synthetic"):
    """Made-up data with real structure: tastes, genres, popularity, and every type of column.

    The same arguments give the same data on every machine.

    Parameters
    ----------
    users, items
        How many of each.
    interactions
        About how many interactions; no user has an item twice.
    ids
        ``int`` (gaps between them, so that an id is never a row by chance) or ``str`` (with letters
        outside ASCII).
    seed
        Another seed, another data set.
    """

    users: int = 600
    items: int = 400
    interactions: int = 24_000
    ids: Literal["int", "str"] = "int"
    seed: int = 7

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for numbers that do not fit together."""
        ranges = {**dict.fromkeys(("users", "items", "interactions"), COUNT), "seed": SEED}
        wrong = list(out_of_range(self, ranges))
        most = self.users * min(self.items, _POOL) // 2
        if wrong or self.users <= self.interactions <= most:
            return wrong
        problem = (
            f"{self.interactions} do not fit {self.users} users and {self.items} items: each user has at "
            "least one, and on average at most half of the items"
        )
        return [Problem("interactions", problem, "change one of the three numbers")]

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Make the three tables."""
        rng = np.random.default_rng(self.seed)
        world = _make_world(rng, self)
        users = _make_users(rng, self, world)
        items = _make_items(rng, self, world)
        interactions = _make_interactions(rng, self, world, users, items, progress)
        return Dataset("synthetic", users, items, interactions, source=f"made by seed {self.seed}").check()


@dataclass(frozen=True)
class _World:
    """The latent truth: genre membership [I, G], item and user points [., d], log popularity [I]."""

    item_genres: npt.NDArray[np.bool_]
    item_points: Floats
    user_tastes: npt.NDArray[np.bool_]
    user_points: Floats
    log_popularity: Floats


def _make_world(rng: np.random.Generator, spec: Synthetic) -> _World:
    directions = rng.normal(size=(len(GENRES), _DIMENSIONS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    item_genres = _memberships(rng, spec.items)
    user_tastes = _memberships(rng, spec.users)
    popularity = rng.permutation(-0.8 * np.log(np.arange(1, spec.items + 1)))
    return _World(
        item_genres,
        _points(rng, item_genres, directions),
        user_tastes,
        _points(rng, user_tastes, directions),
        popularity,
    )


def _memberships(rng: np.random.Generator, n: int) -> npt.NDArray[np.bool_]:
    """Return [n, G] with one to three True per row."""
    order = np.argsort(rng.random((n, len(GENRES))), axis=1)
    count = rng.integers(1, 4, size=(n, 1))
    return np.asarray(np.argsort(order, axis=1) < count)


def _points(rng: np.random.Generator, members: npt.NDArray[np.bool_], directions: Floats) -> Floats:
    points = members.astype(np.float64) @ directions + rng.normal(
        scale=0.25, size=(len(members), _DIMENSIONS)
    )
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def _ids(prefix: str, n: int, kind: str, start: int, step: int) -> object:
    if kind == "int":
        return np.arange(n, dtype=np.int64) * step + start
    return np.array([f"{prefix}-{number:05d}" for number in range(n)], dtype=object)


def _nulled(rng: np.random.Generator, values: npt.NDArray[Any], share: float) -> npt.NDArray[Any]:
    nulled = values.copy()
    nulled[rng.random(len(values)) < share] = np.nan if values.dtype.kind == "f" else None
    return nulled


def _pick(
    rng: np.random.Generator, names: tuple[str, ...], logits: npt.NDArray[Any]
) -> npt.NDArray[np.object_]:
    """Draw one name per row by softmax of the logits [n, len(names)]."""
    choice = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    picked: npt.NDArray[np.object_] = np.array(names, dtype=object)[choice]
    return picked


def _names_of(members: npt.NDArray[np.bool_]) -> list[list[str]]:
    return [[GENRES[genre] for genre in np.flatnonzero(row)] for row in members]


def _make_users(rng: np.random.Generator, spec: Synthetic, world: _World) -> pd.DataFrame:
    n, points = spec.users, world.user_points
    shown = world.user_tastes & (rng.random(world.user_tastes.shape) < 0.8)
    countries = points @ rng.normal(size=(_DIMENSIONS, len(COUNTRIES))) * 2
    age = np.clip(np.round(38 + 14 * points[:, 0] * 2 + rng.normal(scale=8, size=n)), 13, 90)
    income = np.exp(10 + 0.6 * points[:, 1] + rng.normal(scale=0.5, size=n))
    return pd.DataFrame(
        {
            "user_id": _ids("käyttäjä", n, spec.ids, 1_001, 3),
            "age": age.astype(np.int64),
            "income": _nulled(rng, np.round(income, 2), 0.15),
            "country": _nulled(rng, _pick(rng, COUNTRIES, countries), 0.05),
            "interests": _names_of(shown),
            "joined": rng.integers(_START, _START + 365 * _DAY, size=n),
        }
    )


def _make_items(rng: np.random.Generator, spec: Synthetic, world: _World) -> pd.DataFrame:
    n, points = spec.items, world.item_points
    makers = points @ rng.normal(size=(_DIMENSIONS, len(_MAKERS))) * 2
    minutes = np.clip(np.round(95 + 60 * points[:, 2] + rng.normal(scale=15, size=n)), 3, 240)
    price = np.exp(2 + points[:, 3] + rng.normal(scale=0.4, size=n))
    released = rng.integers(_START - 40 * 365 * _DAY, _START, size=n)
    year = pd.to_datetime(released, unit="s").year.to_numpy().astype(np.float64)
    genres = _names_of(world.item_genres)
    return pd.DataFrame(
        {
            "item_id": _ids("作品", n, spec.ids, 50_007, 11),
            "title": [f"{names[0].capitalize()} № {row + 1}" for row, names in enumerate(genres)],
            "genres": genres,
            "topics": _topics(rng, points),
            "maker": _nulled(rng, _pick(rng, _MAKERS, makers), 0.1),
            "price": _nulled(rng, np.round(price, 2), 0.1),
            "minutes": minutes.astype(np.int64),
            "year": _nulled(rng, year, 0.05),
            "released": released,
            "in_stock": (rng.random(n) > 0.03).astype(np.int64),
        }
    )


def _topics(rng: np.random.Generator, points: Floats) -> list[list[int]]:
    """Return lists of integers, some empty: the latent axes along which an item stands out."""
    strong = (points > 0.35) & (rng.random(points.shape) < 0.9)
    return [(np.flatnonzero(row) + 100).tolist() for row in strong]


def _make_interactions(
    rng: np.random.Generator,
    spec: Synthetic,
    world: _World,
    users: pd.DataFrame,
    items: pd.DataFrame,
    progress: Progress | None,
) -> pd.DataFrame:
    counts = _counts(rng, spec)
    user_rows = np.repeat(np.arange(spec.users), counts)
    drawn: list[Ints] = []
    for start in range(0, spec.users, _BLOCK):
        stop = min(start + _BLOCK, spec.users)
        drawn.append(_draw_block(rng, world, slice(start, stop), counts[start:stop]))
        if progress is not None:
            progress("drawing interactions", stop, spec.users)
    item_rows = np.concatenate(drawn)
    n = len(item_rows)
    minutes = items["minutes"].to_numpy(dtype=np.float64)[item_rows]
    joined = users["joined"].to_numpy()[user_rows]
    frame = pd.DataFrame(
        {
            "user_id": users["user_id"].to_numpy()[user_rows],
            "item_id": items["item_id"].to_numpy()[item_rows],
            "timestamp": joined + rng.integers(0, 365 * _DAY, size=n),
            "device": _devices(rng, minutes),
            "hour": _hours(rng, minutes),
        }
    )
    return frame.sort_values(["timestamp", "user_id", "item_id"], kind="stable", ignore_index=True)


def _counts(rng: np.random.Generator, spec: Synthetic) -> Ints:
    """Return how many interactions each user has: uneven, at least one, about the wanted total."""
    shares = rng.lognormal(sigma=0.6, size=spec.users)
    counts = np.round(shares / shares.sum() * spec.interactions).astype(np.int64)
    return np.asarray(np.clip(counts, 1, max(1, int(min(spec.items, _POOL) * 0.8))))


def _draw_block(rng: np.random.Generator, world: _World, block: slice, counts: Ints) -> Ints:
    """Draw each user's items without repeats: the top ``count`` of logits with Gumbel noise."""
    items = len(world.log_popularity)
    pool = np.arange(items)
    if items > _POOL:
        pool = np.sort(np.argsort(-(world.log_popularity + rng.gumbel(size=items)), kind="stable")[:_POOL])
    logits = 6.0 * world.user_points[block] @ world.item_points[pool].T + world.log_popularity[pool]
    logits += rng.gumbel(size=logits.shape)
    most = min(int(counts.max()), len(pool))
    best = np.argpartition(-logits, most - 1, axis=1)[:, :most]
    order = np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1)
    taken = np.arange(most) < counts[:, None]
    return np.asarray(pool[np.take_along_axis(best, order, axis=1)[taken]])


def _devices(rng: np.random.Generator, minutes: Floats) -> npt.NDArray[np.object_]:
    """Return devices: phones for short items, televisions for long ones, and some nulls."""
    length = (minutes - 95) / 40
    logits = np.stack([-length, -0.3 * length, length, np.zeros_like(length)], axis=1)
    return _nulled(rng, _pick(rng, DEVICES, 1.5 * logits), 0.05)


def _hours(rng: np.random.Generator, minutes: Floats) -> Ints:
    """Return hours of the day: later ones for longer items."""
    return np.asarray(np.round(rng.normal(13 + minutes / 20, 4)).astype(np.int64) % 24)
