"""The table that ``tiercel verify`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import VerificationFailed
from .compare import EXACT, Difference, Tolerance


@dataclass(frozen=True)
class VerifyRow:
    """One line of the table.

    Parameters
    ----------
    artefact
        The part of the release.
    check
        What it was compared with.
    compared
        Number of values compared.
    worst
        The largest difference; None if the check is not about numbers.
    tolerance
        The allowed difference.
    ok
        Whether the check passed.
    detail
        Where it failed, or what was measured.
    warning
        Whether the check covers less than it should.
    """

    artefact: str
    check: str
    compared: int
    worst: float | None
    tolerance: str
    ok: bool
    detail: str = ""
    warning: bool = False

    @classmethod
    def of(
        cls,
        artefact: str,
        check: str,
        difference: Difference,
        tolerance: Tolerance = EXACT,
        detail: str = "",
    ) -> VerifyRow:
        """Return the line of one comparison."""
        where = difference.where or detail
        return cls(
            artefact, check, difference.compared, difference.worst, str(tolerance), difference.ok, where
        )


@dataclass(frozen=True)
class VerifyReport:
    """All lines of one release."""

    build_id: str
    rows: tuple[VerifyRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every row is ok."""
        return all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form; an infinite difference is written as null."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["worst"] is not None and not np.isfinite(row["worst"]):
                row["worst"] = None
        return {"ok": self.ok, "build_id": self.build_id, "rows": rows}

    def raise_if_failed(self) -> None:
        """Raise :class:`~tiercel_serving.errors.VerificationFailed` with every row that is not ok."""
        failed = [row for row in self.rows if not row.ok]
        if failed:
            lines = "\n".join(f"  {row.artefact}, {row.check}: {row.detail or row.worst}" for row in failed)
            raise VerificationFailed(
                f"build {self.build_id}: {len(failed)} of {len(self.rows)} checks failed:\n{lines}\n"
                "What is served would not be what was trained; the release must not be used"
            )
