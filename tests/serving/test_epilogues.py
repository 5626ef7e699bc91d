"""Matrix products fused with their ReLU, as packages for a GPU have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tiercel_serving.engines.epilogues_torch import fuse_activations


class Layers(nn.Module):
    """Two products that can be fused, one on 3-D and one on 2-D input, and three that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 3)
        self.bare, self.users = nn.Linear(3, 3, bias=False), nn.Linear(2, 3)

    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        hidden = torch.relu(self.first(items))
        read_twice = self.second(hidden)
        hidden = torch.relu(read_twice) + read_twice
        hidden = torch.relu(self.bare(hidden)) + torch.sigmoid(self.third(hidden))
        return hidden + torch.relu_(self.users(users))[:, None]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_what_is_fused_computes_the_same(batch: int) -> None:
    torch.manual_seed(0)
    model, rows = Layers().eval(), torch.export.Dim("rows", min=1, max=16)
    shown = torch.rand(2, 6, 5), torch.rand(2, 2)
    program = torch.export.export(model, shown, dynamic_shapes=({0: rows}, {0: rows}))
    assert fuse_activations(program) == 2
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("aten._addmm_activation.default") == 2
    assert sum("relu" in target for target in targets) == 2
    items, users = torch.randn(batch, 6, 5), torch.randn(batch, 2)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(items, users), model(items, users), rtol=0, atol=1e-6)
    assert fuse_activations(program) == 0


def test_sizes_that_are_unknown_are_left_alone() -> None:
    items, rows = torch.export.Dim("items", min=1, max=16), torch.export.Dim("rows", min=1, max=16)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    shapes = ({0: rows, 1: items},)
    program = torch.export.export(model.eval(), (torch.rand(2, 6, 5),), dynamic_shapes=shapes)
    assert fuse_activations(program) == 0
