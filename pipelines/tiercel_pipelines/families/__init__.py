"""Model families: torch modules over the packed tensors of the served graph."""

from .dlrm import DLRM, DLRMConfig, build_dlrm
from .layers import CategoryColumn, ListColumn, PackedModule, Side
from .two_tower import ItemTower, TwoTower, TwoTowerConfig, UserTower, build_two_tower

__all__ = [
    "DLRM",
    "CategoryColumn",
    "DLRMConfig",
    "ItemTower",
    "ListColumn",
    "PackedModule",
    "Side",
    "TwoTower",
    "TwoTowerConfig",
    "UserTower",
    "build_dlrm",
    "build_two_tower",
]
