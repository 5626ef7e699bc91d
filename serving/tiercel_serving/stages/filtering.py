"""``filtering``: the first K candidates that pass every rule."""

from __future__ import annotations

from ..release.opened import Release
from ..rules.kept import KeptRules, reason_table
from ..spec import Array, Arrays, StageSpec


class Filtering:
    """Keep the first K candidates that pass every rule; rules are evaluated once for all items, here."""

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        self._settings, self._items = release.settings, release.items
        self.renew()

    def renew(self) -> None:
        """Evaluate the rules for the current items."""
        settings, items = self._settings, self._items
        columns = items.columns(column for rule in settings.rules for column in rule.columns())
        reasons = reason_table(settings.rules, columns, items.size)
        self._rules = KeptRules(reasons, settings.candidates, settings.kept)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Filter ``retrieved_row [B, N]``; see :meth:`~tiercel_serving.rules.kept.KeptRules.keep`."""
        return self._rules.keep(arrays["retrieved_row"], arrays["retrieval_score"], arrays["source"])
