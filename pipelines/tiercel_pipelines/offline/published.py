"""Published figures of other systems, shown only if data, split and protocol are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Another system's figures at 10 for the same data set, split and protocol."""

    name: str
    ndcg: float
    precision: float
    recall: float
    source: str


RECOMMENDERS = "recommenders-team/recommenders, comparison of algorithms"
MEASURED = "measured for this project with the same split"

#: Data set → figures of other systems on a random 75/25 split by user (seed 42), top 10 of all unseen items.
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "ml-100k": (
        Published("EASE (λ = 400)", 0.4826, 0.4201, 0.2241, MEASURED),
        Published("BiVAE", 0.4751, 0.4118, 0.2191, RECOMMENDERS),
        Published("iALS (64 factors)", 0.4725, 0.4156, 0.2214, MEASURED),
        Published("BPR", 0.4420, 0.3882, 0.2125, RECOMMENDERS),
        Published("LightGCN", 0.4198, 0.3796, 0.1443, RECOMMENDERS),
        Published("NCF", 0.3961, 0.3473, 0.1808, RECOMMENDERS),
        Published("SAR", 0.3825, 0.3308, 0.1764, RECOMMENDERS),
    )
}
#: The k, and the split's training share and seed, of the published figures.
PUBLISHED_K = 10
PUBLISHED_SPLIT = (0.75, 42)
