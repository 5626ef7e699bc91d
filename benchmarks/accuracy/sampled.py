"""Neural factorisations and dot products in the 1 + 99 protocol of He et al. 2017 on ml-100k (``--sampled``).

Each user's last film is the test part, and the one before it the validation part. Every contender sees only
ids. Its settings and epochs are chosen on the validation part, then it is trained again on everything except
the test part. It ranks each test film among 99 films that the user never had, the same for all contenders
and seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec
import numpy as np

from benchmarks.accuracy.contenders import SAMPLED, TESTS
from benchmarks.accuracy.run import FIRST_SEED, Kept
from tiercel_pipelines.arrays.lists import RankingLists
from tiercel_pipelines.arrays.packing import rows_of
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import load_dataset, split_dataset
from tiercel_pipelines.families.table import Plan, RankingData, RankingFamily, RetrievalData
from tiercel_pipelines.offline.metrics import Relevance
from tiercel_pipelines.offline.scored import SampledMetrics, draw_negatives, one_plus_n
from tiercel_pipelines.recipe import Recipe, SplitSettings, replace
from tiercel_pipelines.recipe.check_fit import fit_checked
from tiercel_pipelines.training.trainer import Trainer
from tiercel_serving.spec import Array

NEGATIVES = 99
#: Positives in a ranker's list, each with four negatives that are redrawn in each epoch, as in the paper.
POSITIVES = 20


def features() -> Any:
    """Return the feature graph, which holds only ids."""
    from nvtabular import ops

    user_id = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    return user_id + (["item_id"] >> ops.Categorify() >> ops.TagAsItemID())


@dataclass(frozen=True)
class Judge:
    """Ranks a held-out item of each user among 99 that the user never had (``candidates [P, 1 + 99]``)."""

    trainer: Trainer
    users: Array
    candidates: Array

    @classmethod
    def of(cls, trainer: Trainer, known: Pairs, held_out: tuple[Array, Array]) -> Judge:
        """Draw the negatives by a fixed seed, so that they are equal for all models."""
        n_items, count = trainer.packed.n_items, known.n_users
        relevance = Relevance.from_pairs(*held_out, count)
        had = Relevance.from_pairs(known.users, known.items, count)
        return cls(trainer, *draw_negatives(relevance, had, n_items, NEGATIVES, np.random.default_rng(0)))

    def figures(self, fitted: Any) -> SampledMetrics:
        """Return the figures at 10 of a fitted ranker or dot product."""
        packed = self.trainer.packed
        users = packed.user_tensors(self.users, np.full((len(self.users), 1), packed.n_items))
        if hasattr(fitted, "scores"):
            items = {name: array[self.candidates] for name, array in packed.item.items()}
            return one_plus_n(fitted.scores({**users, **items})[..., 0])
        vectors = fitted.form(packed.catalogue)["vectors"][self.candidates]
        return one_plus_n(np.einsum("pd,pnd->pn", fitted.query(users), vectors))

    def __call__(self, fitted: Any) -> float:
        """Return nDCG@10 of a fitted model."""
        return self.figures(fitted).ndcg


@dataclass(frozen=True)
class Bench:
    """The data, and the judges of validation and test part."""

    trainer: Trainer
    valid: Judge
    test: Judge

    @classmethod
    def prepare(cls, data_dir: Path | None) -> Bench:
        """Load, split and pack the data."""
        recipe = _recipe()
        dataset = load_dataset(recipe.dataset, data_dir=data_dir)
        split = split_dataset(dataset, **msgspec.structs.asdict(recipe.split))
        with tempfile.TemporaryDirectory() as folder:
            workflow = fit_checked(recipe, dataset, split.fit, Path(folder) / "workflow", None)
            trainer = Trainer.prepare(recipe, dataset, split, workflow, None)
        held = trainer.pairs.select(trainer.folds == 0)
        # Test items count as known, so that neither judge draws them as negatives.
        test = rows_of(dataset, split.test)
        every = _with(trainer.pairs, test)
        return cls(
            trainer,
            Judge.of(trainer, every, (held.users, held.items)),
            Judge.of(trainer, every, test),
        )

    def measure(self, families: Iterable[Any], seed: int) -> dict[str, Any]:
        """Choose settings and epochs on the validation part, and return the figures of the test part."""
        known = self.trainer.pairs.select(self.trainer.folds != 0)
        tried = []
        for family in families:
            _, course = self._fit(family, known, Plan(seed, "validation", self.valid))
            tried.append((max(course.validation), course.epochs, family))
        best, epochs, family = max(tried, key=lambda one: one[0])
        fitted, _ = self._fit(family, self.trainer.pairs, Plan(seed, "test", epochs=max(1, epochs)))
        return {
            "figures": self.test.figures(fitted).to_json(),
            "validation_ndcg": best,
            "epochs": epochs,
            "chosen": msgspec.to_builtins(family),
        }

    def _fit(self, family: Any, pairs: Pairs, plan: Plan) -> tuple[Any, Any]:
        packed, inputs = self.trainer.packed, self.trainer.inputs
        if isinstance(family, RankingFamily):
            lists = whole_lists(pairs, packed.n_items)
            data: Any = RankingData(packed, inputs, lists, 1 + packed.n_items, 1.0)
        else:
            data = RetrievalData(packed, pairs, inputs)
        fitted, course = family.fit(data, plan)
        return fitted, course


def whole_lists(pairs: Pairs, n_items: int) -> RankingLists:
    """Return lists of at most 20 positives of a user and all items that the user never had.

    A list is as long as the catalogue plus 1; pads take the places of the user's other items.
    """
    owner = np.repeat(np.arange(pairs.n_users), -(-pairs.lengths // POSITIVES))
    part = np.arange(len(owner)) - np.searchsorted(owner, owner)
    # The first place takes part in every step. It stays empty, so that no item is a negative so often.
    catalogue = np.append(n_items, np.arange(n_items)).astype(np.int32)
    rows = np.tile(catalogue, (len(owner), 1))
    weights = np.zeros(rows.shape, np.float32)
    for place, (user, number) in enumerate(zip(owner, part, strict=True)):
        had = pairs.items[pairs.offsets[user] : pairs.offsets[user + 1]]
        mine = had[number :: -(-len(had) // POSITIVES)]
        rows[place, 1 + np.setdiff1d(had, mine)] = n_items
        weights[place, 1 + mine] = 1.0
    none = np.zeros(rows.shape, np.int32)
    history = np.full((len(owner), 1), n_items, np.int32)
    score = none.astype(np.float32)
    return RankingLists(owner, owner, history, rows, score, none, weights, weights[..., None])


def _with(pairs: Pairs, more: tuple[Array, Array]) -> Pairs:
    users, items = np.append(pairs.users, more[0]), np.append(pairs.items, more[1])
    order = np.argsort(users, kind="stable")
    return Pairs.build(users[order], items[order], users[order], np.ones(len(users)), pairs.n_users)


def _recipe() -> Recipe:
    base = TESTS.base()
    serving = msgspec.structs.replace(base.serving, history_length=1, rules=())
    return replace(base, features=features, serving=serving, split=SplitSettings(by="leave_one_out"))


def run_sampled(
    names: Iterable[str],
    seeds: int,
    kept: Kept,
    data_dir: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Measure the models and seeds that ``kept`` does not hold yet."""
    asked = [(name, seed) for name in names for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
    bench: Bench | None = None
    for number, (name, seed) in enumerate(asked):
        key = {"model": name, "seed": seed, "settings": msgspec.to_builtins(SAMPLED[name])}
        if kept.has("sampled", key):
            continue
        progress(f"{name}, seed {seed}", number, len(asked))
        bench = bench or Bench.prepare(data_dir)
        kept.add("sampled", key, bench.measure(SAMPLED[name], seed))


HEAD = ("model", "seeds", "HR@10", "NDCG@10", "MRR", "AUC", "chosen")


def table(cells: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows by descending mean nDCG@10."""
    mine = list(cells)
    groups = [[cell for cell in mine if cell["model"] == name] for name in {c["model"]: 0 for c in mine}]
    groups.sort(key=lambda group: -mean(cell["figures"]["ndcg"] for cell in group))
    return [
        [
            group[0]["model"],
            str(len(group)),
            *(_spread([c["figures"][name] for c in group]) for name in ("hit_rate", "ndcg", "mrr", "auc")),
            _chosen(group),
        ]
        for group in groups
    ]


def _chosen(cells: list[Mapping[str, Any]]) -> str:
    """Return the chosen values of the settings that were varied, and the epochs, of the first seed."""
    cell = cells[0]
    varied = [name for name in cell["chosen"] if len({str(one[name]) for one in cell["settings"]}) > 1]
    return ", ".join([*(f"{name} {cell['chosen'][name]}" for name in varied), f"{cell['epochs']} epochs"])


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def markdown(document: Mapping[str, Any]) -> list[str]:
    """Return the parts of ``docs/accuracy.md``."""
    cells = document.get("sampled", [])
    if not cells:
        return []
    rows = (HEAD, ["---"] * len(HEAD), *table(cells))
    return [_TEXT, "\n".join("| " + " | ".join(row) + " |" for row in rows), _AFTER]


_TEXT = """\
## One item among 100, ml-100k

`python -m benchmarks.accuracy --sampled` follows the protocol of He et al. 2017 ("Neural collaborative
filtering"): each user's last film is ranked among 99 films that the user never had. Every model sees only
ids. Settings and epochs are chosen on the film before the last, from the few in
`benchmarks/accuracy/contenders.py`; then the model is trained on everything but the test. GMF, NCF (the MLP)
and NeuMF learn by log loss with four sampled negatives for each positive, as in the paper. `dot_product` is
matrix factorisation by ALS, `dot_product_bpr` by BPR."""

_AFTER = """\
A rank among 100 is not a rank in the catalogue, and it orders models differently (Krichene and Rendle 2020):
choose by the tables above. On MovieLens-1M He et al. found NeuMF above GMF above their MLP, and all above
matrix factorisation; Rendle et al. 2020 ("Neural collaborative filtering vs. matrix factorization
revisited") tuned the dot product there, and it surpassed all three. With 943 users the standard error of a
hit rate is .015, so neighbours in this table can't be told apart ([models.md](models.md#ranking))."""
