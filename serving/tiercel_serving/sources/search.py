"""The best allowed items for a query by an approximate index, deeper where much is masked.

An index is asked for a few more than are wanted, for all users of a batch at once. A user whose masked items
crowd out the best ones is served alone: by the index with a knob that was measured for that depth, or by a
scan of all vectors, whichever is cheaper. So nobody gets fewer items than there are, and a user with many
masked items costs only that user's time.
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

#: Further candidates that an index is asked for at first, in place of masked ones.
SLACK = 128

#: An approximate index that was measured at depth d is trusted to this many times d: by so much a guess of
#: how deep the best lie may be wrong.
TRUSTED = 1.25

#: Masked items that are looked at to guess whether they are among the user's best: where many are masked, and
#: where so few are that each stands for little. To fetch their vectors is most of what a guess costs.
SAMPLE, LEAST = 128, 48

#: Who has had more than this many times N items is served alone. Such users are not like those that an index
#: is tuned for: its deeper rungs are held to the recall for them too. What a request excludes says nothing of
#: the kind.
HEAVY = 5

#: An index is asked where that took less than this share of a scan when it was measured: elsewhere it may
#: take longer. One user alone is searched deeper for where that takes less than the second share; than the
#: third, where how deep is a guess that no search was made for. To fail costs a scan besides.
WORTH, DEEP, BLIND = 0.7, 0.5, 0.12

#: Where an allowed set leaves less than this share of the items, they are looked at one by one.
FEW = 1 / 16

#: Where a search of the first rung takes more than this share of a scan, it is not asked in vain.
CHEAP = 0.05

#: How many times the knob of its depth a search for the last ``count`` of that depth is given: the outermost
#: are found less surely than all within. At a million items, IVF4096,SQ8, 5,000 hidden, .993 becomes .996.
EDGE = 1.3

#: Indexes whose lists are read without their masked items.
SELECTING = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)

#: More lists than any index has.
_ALL = 1 << 30
#: Deeper than any search.
_ENDLESS = np.int64(1) << 62


class Rung(msgspec.Struct, frozen=True):
    """How an approximate index looks ``depth`` items deep with the recall asked for, all but its margin.

    Parameters
    ----------
    depth
        How many.
    knob
        What its knob must be.
    cost
        What one search takes, over what a scan of all vectors takes.
    cut
        What the ``depth``-th best item scores, over the norm of the query: the median of many queries.
    """

    depth: int
    knob: int
    cost: float
    cut: float


class Profile(msgspec.Struct, frozen=True):
    """What was measured of an approximate index.

    Parameters
    ----------
    knob
        The name of its knob (``nprobe``, ``efSearch``); None where it has none.
    margin
        How many more than are wanted must be looked at, over those wanted: an index that rounds its vectors
        puts some of the best behind worse ones, near the cut-off.
    ladder
        How the knob is set, shallow to deep; the first is how the index is set.
    """

    knob: str | None
    margin: float
    ladder: tuple[Rung, ...]

    def looked_at(self, wanted: int) -> int:
        """Return how many of what the index finds are scored anew, so that the best ``wanted`` are there."""
        return wanted + max(MARGIN, math.ceil(self.margin * wanted))


class Asked(NamedTuple):
    """What an index found for B users.

    Parameters
    ----------
    scores, rows
        The best ``count`` that are allowed, ``[B, count]``.
    used
        ``[B]`` how deep that went; deeper than anything where there were not ``count`` allowed items, or more
        of them tie at the cut than were looked at.
    met
        ``[B]`` how many masked items there were.
    last
        ``[B]`` the rounded score of the last item found; -inf where the index had no more.
    depth
        How many items each user got.
    """

    scores: Scores
    rows: Rows
    used: Rows
    met: Rows
    last: Scores
    depth: int


class IndexSearch:
    """Asks an approximate FAISS index, deeper where masked items crowd out the best, or scans.

    Parameters
    ----------
    space
        What is searched.
    index
        The FAISS index over it; position = position.
    profile
        What was measured of it.
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
        """Return the best allowed items, as :meth:`Search.nearest` says."""
        if self._ladder[0].cost >= WORTH:
            # It is no matter how much is masked: looking at everything costs the same.
            return self._space.scan(query, mask, range(len(query)), count)
        few = list(mask.few(int(len(self._space) * FEW)))
        if len(few) == len(query):
            return self._space.scan(query, mask, range(len(query)), count)
        counts, everybody = mask.counts(), np.arange(len(query))
        heavy = np.asarray(mask.had) > HEAVY * count
        heavy[few] = True
        # Nobody who has little masked fails in the first rung.
        if self._ladder[0].cost > CHEAP and 4 * counts.min() > count:
            hidden = np.zeros((len(query), len(self._ladder)))
            # To guess is no use where it is known that the first rung is not asked, and no other can be.
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
        """Return ``[B]`` by how much higher than the median user's the last item scores that was found."""
        norms = np.maximum([norm(one) for one in query], 1e-12)
        median = np.interp(math.log(asked.depth), self._log_depths, self._cuts)
        return np.where(asked.last > NOTHING, asked.last / norms - median, 0.0)

    def _hidden(
        self, query: Array, mask: Mask, users: Rows, counts: Rows, shift: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Guess ``[n, rungs]`` how many items some users have masked among the best of each rung's depth.

        It is guessed from a sample of them. ``query``, ``counts`` and ``shift`` are those of all users.
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
        """Return one user's best from deeper in the index; None if a scan is cheaper, or surer.

        Guesses of how deep they lie may cost ``most`` together. Within ``count`` and all that is masked they
        lie for certain.
        """
        certain, spent = count + masked, 0.0
        sure = self._profile.looked_at(certain) <= self._reach[DEEP]
        shallowest = self._profile.looked_at(count)
        guesses = self._guesses(hidden, certain, count) if shallowest <= self._reach[most] else []
        # What is certain needs no luck, and costs little more than a guess of half of it.
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
        """Return one user's best if they lie among the ``own`` best of all, or ``TRUSTED`` times as many.

        ``more`` is how many times as many are fetched.
        """
        depth = self._profile.looked_at(own)
        fetched = math.ceil(depth * more)
        # Of as many as that, the wanted ones lie among the first allowed, but for the margin.
        self._turn(knob)
        asked = self._ask(query, mask, np.array([user]), count, fetched, fetched - own + count)
        self._turn(self._ladder[0].knob)
        return (asked.scores[0], asked.rows[0]) if asked.used[0] <= own * TRUSTED else None

    def _selected(
        self, query: Array, mask: Mask, user: int, count: int, looked: int, knob: int
    ) -> tuple[Scores, Rows] | None:
        """Return one user's best of the lists' allowed items alone; None where there were not enough.

        The index keeps only what may come: to keep all that is masked besides costs more than the lists.
        """
        size = len(self._space)
        allowed = np.ones(size, np.bool_)
        masked = self._space.positions_of(mask.rows_of(user))
        allowed[masked[masked < size]] = False
        # FAISS's type stubs know neither what its Python layer takes for a bitmap, nor keywords.
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[arg-type, call-arg]
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=knob)  # type: ignore[call-arg]
        query = np.ascontiguousarray(query, np.float32)
        told, found = np.empty((1, min(looked, size)), np.float32), np.empty((1, min(looked, size)), np.int64)
        # What FAISS's own method does with these; where its layer for torch is loaded, that takes none.
        at, scores_at, found_at = map(faiss.swig_ptr, (query, told, found))
        self._index.search_c(1, at, found.size, scores_at, found_at, parameters)
        found[found < 0] = size
        scores, rows, open_end = self._best(query, found, count)
        return None if open_end[0] else (scores[0], rows[0])

    def _guesses(self, hidden: npt.NDArray[np.float64], certain: int, count: int) -> list[int]:
        """Return how deep the best allowed items lie, and twice that, as far as it is less than is certain.

        It is read off the first rung with room that has none without behind it: a wrong guess shows there.
        """
        needed = np.array([self._profile.looked_at(count + math.ceil(among)) for among in hidden.tolist()])
        full = np.flatnonzero((needed > self._depths) | (hidden > self._depths / 2))
        at = max(int(max(full, default=-1)) + 1, 1)
        if at >= len(hidden):
            return []
        own = count + math.ceil(hidden[at])
        return [guess for guess in (own, 2 * own) if guess < certain]

    def _between(self, depth: int) -> Rung:
        """Return what serves a depth, at most the last rung's.

        Knob and cost grow about as powers of the depth, so that their logarithms are interpolated. The first
        rung is held to other queries than those behind it: from there it is a step.
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
        """Return how deep what takes less than ``most`` of a scan goes; 0 if no rung behind the first is."""
        for at in range(len(self._ladder) - 1, 0, -1):
            if self._ladder[at].cost < most:
                own, beyond = self._ladder[at].depth, self._ladder[at + 1 :][:1]
                dearer = range(own + 1, beyond[0].depth if beyond else own + 1)
                return own + bisect_left(dearer, most, key=lambda depth: self._between(depth).cost)
        return 0

    def _ask(self, query: Array, mask: Mask, users: Rows, count: int, fetched: int, looked: int) -> Asked:
        """Ask the index for ``fetched`` once, for these users of the mask.

        The first ``looked`` of those that are allowed are scored anew.
        """
        size = len(self._space)
        fetched = min(fetched, size)
        rounded, found = self._index.search(query, fetched)
        missing = found < 0
        # FAISS says -1 where it has no more.
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
        """Return the best ``count`` of some positions, and ``[B]`` whether better ones may be elsewhere.

        So it is where there are not ``count``, or where all those behind tie with the last.
        """
        scores, rows = self._space.best(query, positions, max(count, positions.shape[1]))
        open_end = rows[:, count - 1] == self._space.items
        if scores.shape[1] > count:
            open_end |= scores[:, -1] == scores[:, count - 1]
        return scores[:, :count], rows[:, :count], open_end

    def touch(self) -> None:
        """Map every page of the lists, as artefacts do with theirs: FAISS maps its files by itself."""
        if self._profile.knob == "nprobe":
            self._turn(_ALL)
            self._index.search(np.zeros((1, self._space.vectors.shape[1]), np.float32), 1)
            self._turn(self._ladder[0].knob)

    def _turn(self, value: int) -> None:
        if self._profile.knob is not None:
            faiss.ParameterSpace().set_index_parameter(self._index, self._profile.knob, float(value))
