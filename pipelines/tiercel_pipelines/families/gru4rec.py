r"""``gru4rec``: a gated recurrent network that reads the history item by item.

.. math:: h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}, \qquad q = W h_n

with the gates of Cho et al. 2014. The query is combined by an inner product with the item embeddings that the
network reads (Hidasi et al. 2016, "Session-based recommendations with recurrent neural networks"; Hidasi &
Karatzoglou 2018, "Recurrent neural networks with top-k gains for session-based recommendations", with their
constrained embeddings). It is trained with cross-entropy over many negatives (see :mod:`~.sequences`).

A history ``[B, L, H]`` gives a query ``[B, D]``; item vectors are ``[I, D]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from tiercel_serving.problems import COUNT, WIDTH, Range

from ..arrays.inputs import ModelInputs
from .history_items import HistoryItems
from .sequences import SequenceFamily, SequenceNetwork, sequence_network


class GRU4Rec(SequenceFamily, frozen=True, tag="gru4rec"):
    """Gated recurrent network.

    Parameters
    ----------
    hidden_dimension, layers
        Width of the state, and number of recurrent layers.
    """

    name: str = "gru4rec"
    hidden_dimension: int = 128
    layers: int = 1

    ranges: ClassVar[Mapping[str, Range]] = {"hidden_dimension": WIDTH, "layers": COUNT}

    def network(self, inputs: ModelInputs, items: HistoryItems) -> SequenceNetwork:
        """Return the layers with fresh weights."""
        return sequence_network(Recurrent, self, items)


class Recurrent(SequenceNetwork):
    """Layers of gated recurrent units."""

    def __init__(self, settings: GRU4Rec, items: HistoryItems):
        super().__init__(settings, items)
        width, layers = settings.hidden_dimension, settings.layers
        self.drop = nn.Dropout(settings.dropout)
        self.read = nn.GRU(settings.dimension, width, layers, batch_first=True)
        self.out = nn.Linear(width, settings.dimension)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the states."""
        states, _ = self.read(self.drop(vectors))
        result: Tensor = self.out(self.drop(states))
        return result
