"""Every error of the export package, in one tree.

::

    TiercelError
    └── ExportError
        ├── WorkflowError           the feature workflow can't be read, cut or used as it is
        │   └── UnsupportedOperator one of its operators can't be compiled exactly
        └── ExportInputError        items, users, interactions, vectors or modules do not fit

A message names the part and says what was expected, what was found, and what to do.
"""

from __future__ import annotations

from tiercel_serving.errors import TiercelError


class ExportError(TiercelError):
    """Base class of all errors while a release is built or verified."""


class WorkflowError(ExportError):
    """The feature workflow can't be read, cut or used as it is."""


class UnsupportedOperator(WorkflowError):
    """An operator of the workflow can't be compiled exactly.

    Parameters
    ----------
    operator
        Its class name.
    column
        The column that it is applied to.
    reason
        Why no compiled program can equal it.
    remedy
        What to do instead.
    """

    def __init__(self, operator: str, column: str, reason: str, remedy: str) -> None:
        super().__init__(f"{operator} on column {column!r} can't be compiled: {reason}. {remedy}.")
        self.operator, self.column, self.reason, self.remedy = operator, column, reason, remedy


class ExportInputError(ExportError):
    """Items, users, interactions, vectors or modules do not fit together."""
