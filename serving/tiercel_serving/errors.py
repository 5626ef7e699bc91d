"""Every error of the serving package, in one tree.

::

    TiercelError
    ├── RequestError            one request is at fault; its neighbours in the batch are not
    │   ├── InvalidRequest      the input can never be answered            (Triton: INVALID_ARG)
    │   └── UnknownId           something named in the request is missing  (Triton: NOT_FOUND)
    ├── StageFailed             a stage broke on input that it had accepted       (Triton: INTERNAL)
    └── ReleaseError            the release on disk is at fault
        ├── ReleaseMissing      there is no release where one was expected
        ├── ArtefactMissing     the manifest names a file that is not there
        ├── ArtefactCorrupt     a file differs from what the manifest says
        ├── BuildMismatch       a file belongs to another build
        └── NewerFormat         written by a newer Tiercel than this one

A message says the stage or file, what was expected, what came, and what to do.
"""

from __future__ import annotations


class TiercelError(Exception):
    """Base of every error that Tiercel raises on purpose."""


class RequestError(TiercelError):
    """One request is at fault. It gets this error; the rest of the batch is answered."""


class InvalidRequest(RequestError):
    """The input can never be answered, however often it is sent."""


class UnknownId(RequestError):
    """Something that the request names does not exist in this release."""


class StageFailed(TiercelError):
    """A stage broke on input that it had accepted: a bug, or a damaged machine.

    Parameters
    ----------
    stage
        The stage's name.
    cause
        What it raised.
    """

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(f"stage {stage}: {type(cause).__name__}: {cause}; see the server's log")
        self.stage = stage


class ReleaseError(TiercelError):
    """The release on disk is at fault."""


class ReleaseMissing(ReleaseError):
    """There is no release where one was expected."""


class ArtefactMissing(ReleaseError):
    """The manifest names a file that is not there."""


class ArtefactCorrupt(ReleaseError):
    """A file differs from what the manifest or its own header says."""


class BuildMismatch(ReleaseError):
    """A file belongs to another build than the manifest."""


class NewerFormat(ReleaseError):
    """The file was written by a newer Tiercel; upgrade this one or export again."""
