"""The best allowed items for a query by an approximate index, searched deeper where many items are masked.

The index is first searched for a few more items than are wanted, for all users of a batch at once. A user
whose masked items crowd out the best ones is then served separately: by the index with a knob that was
measured for a larger depth, or by a scan of all vectors, whichever is cheaper. So no user gets fewer items
than exist, and one user's many masked items do not slow down the search for the others.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, first_allowed, pick
from ..spec import Array
from .scan import MARGIN, NOTHING, Space, norm

#: The most extra candidates that the first search fetches to replace masked ones.
SLACK = 128

#: An index that was measured at depth d is trusted up to this many times d. So much may an estimate of the
#: needed depth be off.
TRUSTED = 1.25

#: Largest and smallest sample of masked items that estimates how many of them are among the user's best.
#: Fetching their vectors is most of the cost of an estimate.
SAMPLE, LEAST = 128, 48

#: Users with more than this many times N seen items are served separately: their queries differ from those
#: that the first rung is tuned for; deeper rungs are tuned for both. A request's exclusions do not count.
HEAVY = 5

#: Largest measured cost of an index search, as a share of a scan's: for a whole batch (another machine may
#: need longer than the measured one), for a deeper search of one user, and for a deeper search whose depth is
#: estimated without a first search. A failed attempt costs a scan in addition.
WORTH, DEEP, BLIND = 0.7, 0.5, 0.12

#: If an allowed set leaves less than this share of the items, they are scored one by one.
FEW = 1 / 16

#: If a first-rung search costs more than this share of a scan, it is skipped where it would be useless.
CHEAP = 0.05

#: Factor on the knob when only the last ``count`` items of a depth are wanted: these are found less reliably
#: than those before them. With a million items, IVF4096,SQ8 and 5,000 hidden, recall rises from .993 to .996.
EDGE = 1.3

#: Index types that can skip masked items while they read their lists.
SELECTING = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)

#: An ``nprobe`` above the number of lists of any index.
_ALL = 1 << 30
#: A depth beyond that of any search.
_ENDLESS = np.int64(1) << 62


class Rung(msgspec.Struct, frozen=True):
    """What an approximate index needs to search ``depth`` items deep with the required recall.

    Parameters
    ----------
    depth
        Number of items, including the margin except on the first rung.
    knob
        Value of the knob.
    cost
        Time of one search, as a share of that of a scan of all vectors.
    cut
        Score of the ``depth``-th best item over the norm of the query; median of many queries.
    """

    depth: int
    knob: int
    cost: float
    cut: float


class Profile(msgspec.Struct, frozen=True):
    """Measurements of an approximate index.

    Parameters
    ----------
    knob
        Name of the search parameter that trades time for recall (``nprobe``, ``efSearch``), or None.
    margin
        How many extra results must be rescored, as a share of those wanted: near the cut-off, an index that
        rounds its vectors puts some of the best items behind worse ones.
    ladder
        Knob values by depth, ascending; outside of deeper searches the index is set to the first.
    """

    knob: str | None
    margin: float
    ladder: tuple[Rung, ...]

    def looked_at(self, wanted: int) -> int:
        """Return how many results of the index to rescore, so that the best ``wanted`` are among them."""
        return wanted + max(MARGIN, math.ceil(self.margin * wanted))


class Asked(NamedTuple):
    """The result of one index search for B users.

    Parameters
    ----------
    scores, rows
        ``[B, count]``, the best allowed items.
    used
        ``[B]`` depth of the ``count``-th allowed item; :data:`_ENDLESS` if there are fewer, or if all items
        looked at beyond ``count`` tie with the last.
    met
        ``[B]`` number of masked items among those fetched.
    last
        ``[B]`` the index's rounded score of the last item fetched; -inf where it had no more.
    depth
        Number of items fetched per user.
    """

    scores: Scores
    rows: Rows
    used: Rows
    met: Rows
    last: Scores
    depth: int


class IndexSearch:
    """Search an approximate FAISS index, deeper where masked items crowd out the best, or scan.

    Parameters
    ----------
    space
        The vectors that are searched.
    index
        The FAISS index over them; its ids are positions of ``space``.
    profile
        The index's measurements.
    """

    def __init__(self, space: Space, index: Any, profile: Profile) -> None:
        self._space, self._index, self._profile = space, index, profile
        self._ladder = profile.ladder
        self._cuts = np.array([rung.cut for rung in self._ladder])
        self._depths = np.array([rung.depth for rung in self._ladder])
        self._log_depths = np.log(self._depths)
        self._selects = type(faiss.downcast_index(index)) in SELECTING
        self._reach = {most: self._deepest(most) for most in (DEEP, BLIND)}

    def nearest(self, query: Array, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the best allowed items; see :meth:`Search.nearest`."""
        if self._ladder[0].cost >= WORTH:
            # A scan costs about as much as the index, however many items are masked.
            return self._space.scan(query, mask, range(len(query)), count)
        few = list(mask.few(int(len(self._space) * FEW)))
        if len(few) == len(query):
            return self._space.scan(query, mask, range(len(query)), count)
        counts, everybody = mask.counts(), np.arange(len(query))
        heavy = np.asarray(mask.had) > HEAVY * count
        heavy[few] = True
        # Users with few masked items do not fail on the first rung.
        if self._ladder[0].cost > CHEAP and 4 * counts.min() > count:
            hidden = np.zeros((len(query), len(self._ladder)))
            # An estimate is useless if no user can use the first rung, and no deeper rung is cheap enough.
            if self._reach[BLIND] or not heavy.all():
                hidden = self._hidden(query, mask, everybody, counts, np.zeros(len(query)))
            if (heavy | (hidden[:, 0] > count / 4) | (hidden > self._depths / 2).any(1)).all():
                return self._each(query, mask, everybody, counts, hidden, count, BLIND)
        looked = self._profile.looked_at(count)
        asked = self._ask(query, mask, everybody, count, looked + min(SLACK, int(counts.max())), looked)
        again = np.flatnonzero(heavy | (asked.used > TRUSTED * max(count, self._ladder[0].depth)))
        if len(again):
            hidden = np.zeros((len(again), len(self._ladder)))
            if self._reach[DEEP]:
                hidden = self._hidden(query, mask, again, counts, self._shift(query, asked))
                hidden = np.maximum(hidden, asked.met[again, None])
            found = self._each(query[again], mask, again, counts[again], hidden, count, DEEP)
            asked.scores[again], asked.rows[again] = found
        return asked.scores, asked.rows

    def _shift(self, query: Array, asked: Asked) -> npt.NDArray[np.float64]:
        """Return ``[B]``, by how much the last item found scores above the median user's at that depth."""
        norms = np.maximum([norm(one) for one in query], 1e-12)
        median = np.interp(math.log(asked.depth), self._log_depths, self._cuts)
        return np.where(asked.last > NOTHING, asked.last / norms - median, 0.0)

    def _hidden(
        self, query: Array, mask: Mask, users: Rows, counts: Rows, shift: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Estimate ``[n, rungs]``, the number of masked items among a user's best of each rung's depth.

        A sample of them is scored. ``query``, ``counts`` and ``shift`` are those of all users of the batch.
        """
        hidden = np.zeros((len(users), len(self._ladder)))
        for at, user in enumerate(users.tolist()):
            masked = int(counts[user])
            if not masked:
                continue
            most = min(max(16 * masked // self._ladder[0].depth, LEAST), SAMPLE)
            sample = self._space.positions_of(mask.sample(user, masked, most))
            scores = self._space.score(query[user : user + 1], sample[None])[0]
            cuts = (self._cuts + shift[user]) * norm(query[user])
            hidden[at] = np.count_nonzero(scores[:, None] >= cuts, axis=0) / max(len(sample), 1) * masked
        return hidden

    def _each(
        self,
        query: Array,
        mask: Mask,
        users: Rows,
        counts: Rows,
        hidden: npt.NDArray[np.float64],
        count: int,
        most: float,
    ) -> tuple[Scores, Rows]:
        """Answer users one by one, deep in the index where that is cheaper than a scan."""
        scores = np.empty((len(users), count), np.float32)
        rows = np.empty((len(users), count), np.int64)
        left: list[int] = []
        for at, user in enumerate(users.tolist()):
            found = self._deep(query[at : at + 1], mask, user, count, int(counts[at]), hidden[at], most)
            if found is None:
                left.append(at)
            else:
                scores[at], rows[at] = found
        if len(left) == len(users):
            return self._space.scan(query, mask, users.tolist(), count)
        if left:
            scores[left], rows[left] = self._space.scan(query[left], mask, users[left].tolist(), count)
        return scores, rows

    def _deep(
        self,
        query: Array,
        mask: Mask,
        user: int,
        count: int,
        masked: int,
        hidden: npt.NDArray[np.float64],
        most: float,
    ) -> tuple[Scores, Rows] | None:
        """Return one user's best items from a deeper search; None if a scan is cheaper or more reliable.

        Searches at estimated depths may cost ``most`` in total. A depth of ``count`` plus all masked items is
        certain to suffice.
        """
        certain, spent = count + masked, 0.0
        sure = self._profile.looked_at(certain) <= self._reach[DEEP]
        shallowest = self._profile.looked_at(count)
        guesses = self._guesses(hidden, certain, count) if shallowest <= self._reach[most] else []
        # The certain depth can't fail, and costs little more than a guess of half of it.
        for own in [guess for guess in guesses if not sure or 2 * guess < certain]:
            depth = self._profile.looked_at(own)
            if depth > self._reach[most]:
                continue
            rung = self._between(depth)
            if spent + rung.cost >= most:
                continue
            spent += rung.cost
            found = self._to_depth(query, mask, user, count, own, rung.knob, TRUSTED)
            if found is not None:
                return found
        if not sure:
            return None
        depth = self._profile.looked_at(certain)
        rung = self._between(depth)
        if spent + rung.cost >= DEEP:
            return None
        if self._selects:
            return self._selected(
                query, mask, user, count, depth - certain + count, math.ceil(EDGE * rung.knob)
            )
        return self._to_depth(query, mask, user, count, certain, rung.knob, 1.0)

    def _to_depth(
        self, query: Array, mask: Mask, user: int, count: int, own: int, knob: int, more: float
    ) -> tuple[Scores, Rows] | None:
        """Return one user's best if they are among the ``own`` times ``TRUSTED`` best of all, else None.

        ``more`` is a factor on the number of items fetched.
        """
        depth = self._profile.looked_at(own)
        fetched = math.ceil(depth * more)
        # Among so many fetched, the wanted items are the first allowed ones, up to the margin.
        self._turn(knob)
        asked = self._ask(query, mask, np.array([user]), count, fetched, fetched - own + count)
        self._turn(self._ladder[0].knob)
        return (asked.scores[0], asked.rows[0]) if asked.used[0] <= own * TRUSTED else None

    def _selected(
        self, query: Array, mask: Mask, user: int, count: int, looked: int, knob: int
    ) -> tuple[Scores, Rows] | None:
        """Return one user's best items from a search that skips masked ones; None if there are too few.

        A heap that also holds all masked items would cost more than reading the lists.
        """
        size = len(self._space)
        allowed = np.ones(size, np.bool_)
        masked = self._space.positions_of(mask.rows_of(user))
        allowed[masked[masked < size]] = False
        # FAISS's type stubs lack the bitmap argument and the keywords that its Python layer accepts.
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[arg-type, call-arg]
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=knob)  # type: ignore[call-arg]
        query = np.ascontiguousarray(query, np.float32)
        told, found = np.empty((1, min(looked, size)), np.float32), np.empty((1, min(looked, size)), np.int64)
        # As FAISS's own search method does; its torch layer, once loaded, accepts no parameters there.
        at, scores_at, found_at = map(faiss.swig_ptr, (query, told, found))
        self._index.search_c(1, at, found.size, scores_at, found_at, parameters)
        found[found < 0] = size
        scores, rows, open_end = self._best(query, found, count)
        return None if open_end[0] else (scores[0], rows[0])

    def _guesses(self, hidden: npt.NDArray[np.float64], certain: int, count: int) -> list[int]:
        """Return an estimate of how deep the best allowed items lie, and its double, if below ``certain``.

        It is taken from the first rung after all those that are too shallow for their own estimate: at such a
        depth a wrong estimate is detected.
        """
        needed = np.array([self._profile.looked_at(count + math.ceil(among)) for among in hidden.tolist()])
        full = np.flatnonzero((needed > self._depths) | (hidden > self._depths / 2))
        at = max(int(max(full, default=-1)) + 1, 1)
        if at >= len(hidden):
            return []
        own = count + math.ceil(hidden[at])
        return [guess for guess in (own, 2 * own) if guess < certain]

    def _between(self, depth: int) -> Rung:
        """Return a rung for a depth, which is at most that of the last one.

        Knob and cost grow roughly as powers of the depth, so their logarithms are interpolated. The first
        rung is tuned on other queries than the rest, so depths beyond it use at least the second.
        """
        at = max(int(np.searchsorted(self._depths, depth)), 1)
        below, above = self._ladder[at - 1 : at + 1]
        if at == 1:
            return above
        share = math.log(depth / below.depth) / math.log(above.depth / below.depth)
        knob = below.knob * (above.knob / below.knob) ** share
        cost = below.cost * (above.cost / below.cost) ** share if below.cost else above.cost
        return Rung(depth, math.ceil(knob), cost, above.cut)

    def _deepest(self, most: float) -> int:
        """Return the largest depth below a cost of ``most`` scans; 0 if no rung after the first is."""
        for at in range(len(self._ladder) - 1, 0, -1):
            if self._ladder[at].cost < most:
                own, beyond = self._ladder[at].depth, self._ladder[at + 1 :][:1]
                dearer = range(own + 1, beyond[0].depth if beyond else own + 1)
                return own + bisect_left(dearer, most, key=lambda depth: self._between(depth).cost)
        return 0

    def _ask(self, query: Array, mask: Mask, users: Rows, count: int, fetched: int, looked: int) -> Asked:
        """Search the index once for ``fetched`` items each, for these users of the mask.

        The first ``looked`` allowed ones are rescored exactly.
        """
        size = len(self._space)
        fetched = min(fetched, size)
        rounded, found = self._index.search(query, fetched)
        missing = found < 0
        # FAISS returns -1 where it has no more.
        found[missing] = size
        last = np.where(missing[:, -1], NOTHING, rounded[:, -1])
        allowed = mask.allows(self._space.rows_at(found), users)
        places, real = first_allowed(allowed, min(looked, fetched))
        positions = pick(found, places)
        if real is not None:
            positions[~real] = size
        scores, rows, open_end = self._best(query, positions, count)
        used = places[:, min(count, places.shape[1]) - 1] + 1
        met = fetched - np.count_nonzero(allowed | missing, axis=1)
        return Asked(scores, rows, np.where(open_end, _ENDLESS, used), met, last, fetched)

    def _best(self, query: Array, positions: Rows, count: int) -> tuple[Scores, Rows, npt.NDArray[np.bool_]]:
        """Return the best ``count`` of some positions, and ``[B]`` whether other positions may be better.

        That is so if there are fewer than ``count``, or if all positions beyond ``count`` tie with the last.
        """
        scores, rows = self._space.best(query, positions, max(count, positions.shape[1]))
        open_end = rows[:, count - 1] == self._space.items
        if scores.shape[1] > count:
            open_end |= scores[:, -1] == scores[:, count - 1]
        return scores[:, :count], rows[:, :count], open_end

    def touch(self) -> None:
        """Touch every page of the lists, as artefacts do with their files: FAISS maps its own."""
        if self._profile.knob == "nprobe":
            self._turn(_ALL)
            self._index.search(np.zeros((1, self._space.vectors.shape[1]), np.float32), 1)
            self._turn(self._ladder[0].knob)

    def _turn(self, value: int) -> None:
        if self._profile.knob is not None:
            faiss.ParameterSpace().set_index_parameter(self._index, self._profile.knob, float(value))
