"""Fitting both models: epochs, early stopping, and what is kept of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..data import Progress
from ..errors import TrainingError
from ..families.dlrm import DLRM, DLRMConfig, build_dlrm
from ..families.two_tower import TwoTower, TwoTowerConfig, build_two_tower
from ..offline.metrics import Relevance, ranking_metrics
from ..recipe.recipe import RankingSettings, RetrievalSettings
from .losses import listwise_softmax, sampled_softmax
from .pairs import IntArray, Packed, Pairs, left_align
from .retrieval import item_vectors, queries, rank, reorder
from .sampling import BatchMaker, RankingLists, draw_groups, sample_candidates

#: Places that early stopping looks at.
JUDGED_AT = 10

#: The kept weights are a moving average over about 1 / (1 - this) steps: it is as good as letting the
#: learning rate fall, and unlike that it is good at every epoch, so that one may stop at any.
AVERAGE_DECAY = 0.98


@dataclass(frozen=True)
class Course:
    """How a training went.

    Parameters
    ----------
    epochs
        How many epochs the kept weights saw.
    losses
        Mean loss of each epoch run.
    validation
        nDCG@10 on the held-out interactions: before the first epoch, then after each. Empty if
        nothing was held out.
    """

    epochs: int
    losses: tuple[float, ...]
    validation: tuple[float, ...]


@contextmanager
def seeded(seed: int) -> Iterator[np.random.Generator]:
    """Seed torch inside the block and give a NumPy generator; torch's own state returns afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)


def fit_two_tower(
    config: TwoTowerConfig,
    settings: RetrievalSettings,
    packed: Packed,
    pairs: Pairs,
    *,
    seed: int,
    valid: Pairs | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
    label: str = "two-tower",
) -> tuple[TwoTower, Course]:
    """Train both towers.

    Parameters
    ----------
    config
        Columns and widths.
    settings
        The recipe's choices.
    packed
        The packed tensors.
    pairs
        The interactions to learn.
    seed
        Same seed, same weights, on the same machine with the same number of threads.
    valid
        Interactions to judge each epoch by; training stops when they get no better, and the best
        epoch's weights are returned. None runs ``epochs`` epochs.
    epochs
        How many epochs without ``valid``; None is ``settings.max_epochs``.
    progress
        Called after each epoch.
    label
        What progress calls this training.
    """
    if not len(pairs):
        raise TrainingError(f"{label}: there are no interactions to learn from")
    with seeded(seed) as rng:
        model = build_two_tower(config)
        maker = BatchMaker(pairs, packed, config.user, settings.history_dropout, settings.id_dropout)
        learner = Learner(model, settings.learning_rate, settings.weight_decay, label)
        log_q = _log_q(pairs, packed.n_items, settings.logq_correction)

        def epoch() -> float:
            groups = draw_groups(pairs, settings.positives, settings.context_dropout, rng)
            # As many groups as hold about batch_size interactions.
            size = max(1, round(settings.batch_size * len(groups.users) / len(pairs)))
            losses = []
            for batch in maker.epoch(groups, size, rng):
                user = {name: torch.from_numpy(array) for name, array in batch.user.items()}
                item = {name: torch.from_numpy(array[batch.items]) for name, array in packed.item.items()}
                query, vectors = model.user_tower(**user), model.item_tower(**item)
                logits = query @ vectors.T / settings.temperature
                positives = torch.from_numpy(batch.positives)
                q = log_q[torch.from_numpy(batch.items)]
                loss = sampled_softmax(
                    torch.gather(logits, 1, positives),
                    q[positives],
                    logits,
                    q,
                    torch.from_numpy(batch.counts),
                    torch.from_numpy(batch.hits),
                    torch.from_numpy(batch.weights),
                )
                losses.append(learner.step(loss))
            return float(np.mean(losses))

        def judge() -> float:
            assert valid is not None
            return retrieval_ndcg(model, packed, pairs, valid)

        course = _run(
            learner,
            epoch,
            judge if valid is not None and len(valid) else None,
            max_epochs=settings.max_epochs,
            epochs=epochs,
            patience=settings.patience,
            progress=progress,
            label=label,
        )
    return model.eval(), course


def _log_q(pairs: Pairs, n_items: int, corrected: bool) -> torch.Tensor:
    """Return the log probability [I] that a draw from a batch is the item; zeros without correction."""
    counts = np.bincount(pairs.items, minlength=n_items)
    log_q = np.log(np.maximum(counts, 1) / max(len(pairs), 1))
    return torch.from_numpy((log_q if corrected else np.zeros(n_items)).astype(np.float32))


def retrieval_ndcg(model: TwoTower, packed: Packed, seen: Pairs, valid: Pairs) -> float:
    """Return nDCG@10 of exact search over all unseen items."""
    query, vectors = queries(model.user_tower, packed, seen), item_vectors(model.item_tower, packed)
    scores = query @ vectors.T
    scores[seen.users, seen.items] = -np.inf
    count = min(JUDGED_AT, packed.n_items)
    top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    found = np.take_along_axis(scores, top, axis=1)
    order = np.lexsort((top, -found), axis=1)
    rows = np.take_along_axis(top, order, axis=1)
    counts = np.isfinite(found).sum(axis=1)
    return _ndcg(rows, counts, valid, packed.n_items)


def _ndcg(rows: IntArray, counts: IntArray, valid: Pairs, n_items: int) -> float:
    relevance = Relevance.from_pairs(valid.users, valid.items, valid.n_users)
    return ranking_metrics(rows, counts, relevance, JUDGED_AT, n_items).ndcg


def fit_dlrm(
    config: DLRMConfig,
    settings: RankingSettings,
    packed: Packed,
    lists: RankingLists,
    kept: int,
    *,
    seed: int,
    valid: tuple[RankingLists, Pairs] | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
    label: str = "ranker",
) -> tuple[DLRM, Course]:
    """Train the ranker on lists of candidates whose positives the retrieval model did not know.

    Parameters
    ----------
    config
        Columns and widths.
    settings
        The recipe's choices.
    packed
        The packed tensors.
    lists
        The lists to learn.
    kept
        K: how many candidates reach the ranker when it serves.
    seed
        As in :func:`fit_two_tower`.
    valid
        Lists to judge each epoch by, and their held-out interactions. If no epoch is better than
        the start, the weights of the start are returned: retrieval's own order.
    epochs
        How many epochs without ``valid``; None is ``settings.max_epochs``, 0 returns the start.
    progress
        Called after each epoch.
    label
        What progress calls this training.
    """
    with seeded(seed) as rng:
        model = build_dlrm(config)
        learner = Learner(model, settings.learning_rate, settings.weight_decay, label)
        useful = np.flatnonzero((lists.weights[:, :kept] > 0).any(axis=1))

        def epoch() -> float:
            losses = []
            order = rng.permutation(useful)
            for start in range(0, len(order), settings.batch_size):
                batch = lists.take(order[start : start + settings.batch_size])
                loss = _ranking_loss(model, settings, packed, batch, kept, rng)
                losses.append(learner.step(loss))
            return float(np.mean(losses)) if losses else 0.0

        def judge() -> float:
            assert valid is not None
            return ranking_ndcg(model, packed, valid[0], valid[1], kept)

        course = _run(
            learner,
            epoch,
            judge if valid is not None and len(valid[1]) else None,
            max_epochs=settings.max_epochs,
            epochs=epochs,
            patience=settings.patience,
            progress=progress,
            label=label,
        )
    return model.eval(), course


def _ranking_loss(
    model: DLRM,
    settings: RankingSettings,
    packed: Packed,
    batch: RankingLists,
    kept: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    pad = packed.n_items
    chosen = sample_candidates(batch, kept, settings.negatives, settings.hard_negatives, pad, rng)
    width = int(chosen.sum(axis=1).max())
    places = np.broadcast_to(np.arange(chosen.shape[1]), chosen.shape)
    # One more column of padding, for the places that a shorter row does not use.
    place = left_align(places, chosen, width, chosen.shape[1])
    rows, scores, sources, weights = (
        np.take_along_axis(np.pad(array, ((0, 0), (0, 1)), constant_values=fill), place, axis=1)
        for array, fill in ((batch.rows, pad), (batch.scores, 0), (batch.sources, 0), (batch.weights, 0))
    )
    history = batch.history
    if settings.history_dropout > 0:
        share = rng.random((len(history), 1)) * 2 * settings.history_dropout
        chosen_history = (history != pad) & (rng.random(history.shape) >= share)
        history = left_align(history, chosen_history, history.shape[1], pad)
    arrays = packed.user_tensors(batch.contexts, history)
    arrays.update({name: array[rows] for name, array in packed.item.items()})
    arrays.update(kept_score=scores, kept_source=sources)
    result = model(**{name: torch.from_numpy(arrays[name]) for name in model.input_names})
    return listwise_softmax(result[:, :, 0], torch.from_numpy(weights), torch.from_numpy(rows != pad))


def ranking_ndcg(model: DLRM, packed: Packed, lists: RankingLists, held_out: Pairs, kept: int) -> float:
    """Return nDCG@10 of the ranker's order of each list's first ``kept`` candidates, without context."""
    candidates = (lists.rows[:, :kept], lists.scores[:, :kept], lists.sources[:, :kept])
    scores = rank(model, packed, lists.users, lists.history, candidates)
    rows = reorder(candidates[0], scores)
    return _ndcg(rows, (rows != packed.n_items).sum(axis=1), held_out, packed.n_items)


class Learner:
    """A model, its optimiser, and the moving average of its weights, which is what training keeps.

    Parameters
    ----------
    model
        The model.
    learning_rate, weight_decay
        Of AdamW.
    label
        What messages call this training.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float, label: str):
        self.model = model
        self.label = label
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.steps = 0

    def step(self, loss: torch.Tensor) -> float:
        """Take one step down the loss and return its value."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.label}: the loss became {value}; lower the learning rate, or raise the temperature"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.steps += 1
        # The first steps weigh more, so that the average soon forgets the random start.
        share = max(1 - AVERAGE_DECAY, 1 / (self.steps + 1))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, share)
        return value

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average into the model inside the block."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        self.load(self.average)
        yield
        self.load(current)

    def load(self, weights: list[torch.Tensor]) -> None:
        """Copy weights into the model."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(value)


def _run(
    learner: Learner,
    epoch: Callable[[], float],
    judge: Callable[[], float] | None,
    *,
    max_epochs: int,
    epochs: int | None,
    patience: int,
    progress: Progress | None,
    label: str,
) -> Course:
    """Run epochs until the judge has seen nothing better for ``patience`` of them, and keep the best."""
    total = max_epochs if judge is not None or epochs is None else epochs
    losses: list[float] = []
    judged = [judge()] if judge is not None else []
    best, kept = 0, [value.clone() for value in learner.average]
    for number in range(total):
        learner.model.train()
        losses.append(epoch())
        if progress is not None:
            progress(label, number + 1, total)
        if judge is None:
            continue
        with learner.averaged():
            judged.append(judge())
        if judged[-1] > judged[best]:
            best, kept = number + 1, [value.clone() for value in learner.average]
        if number + 1 - best >= patience:
            break
    learner.load(kept if judge is not None else learner.average)
    if progress is not None and len(losses) < total:
        # It stopped early: nothing is left to wait for.
        progress(label, total, total)
    return Course(best if judge is not None else len(losses), tuple(losses), tuple(judged))
