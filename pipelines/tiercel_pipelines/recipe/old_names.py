"""Replacements for names of older recipes."""

from __future__ import annotations

from collections.abc import Mapping

#: Name or field of older recipes → what to write now.
NOW: Mapping[str, str] = {
    "RetrievalSettings": "TwoTower(…): the class is the model",
    "RankingSettings": "DLRM(…): the class is the model; target, folds and negatives are its task's",
    "IndexSettings": 'Index("two_tower", factory=…) among serving.sources',
    "Source": 'Index("two_tower") or Popular(quota=0)',
    "Rule": "Compare(…), with the same arguments",
    "model": "leave it out: the class says which model it is",
    "index": 'write Index("two_tower", factory=…) among serving.sources',
    "task_weights": "write reorder=(WeightedSum((1.0, …)),)",
    "kind": 'leave it out: the class says it, Index("two_tower") or Popular()',
}


def old_name(name: str, module: str) -> Exception:
    """Return the error to raise for a name that a module does not have."""
    if name in NOW and name[0].isupper():
        return ImportError(f"{name} is of an older Tiercel; write {NOW[name]}")
    return AttributeError(f"module {module!r} has no attribute {name!r}")
