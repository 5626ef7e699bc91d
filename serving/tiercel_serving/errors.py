"""All errors of the serving package, in one tree.

::

    TiercelError
    ├── RequestError            one request is at fault; its neighbours in the batch are not
    │   ├── InvalidRequest      the input can never be answered            (Triton: INVALID_ARG)
    │   └── UnknownId           something named in the request is missing  (Triton: NOT_FOUND)
    ├── StageFailed             a stage failed on input that it had accepted      (Triton: INTERNAL)
    ├── InvalidSettings         settings contradict each other, or do not fit the data or model
    ├── KindUnavailable         a kind is unknown, or the library that it needs is not installed
    ├── ReleaseError            the release on disk is at fault
    │   ├── ReleaseMissing      there is no release where one was expected
    │   ├── DestinationTaken    something exists where a release is to be written
    │   ├── ArtefactMissing     the manifest names a file that does not exist
    │   ├── ArtefactCorrupt     a file differs from its description in the manifest
    │   ├── ManifestInvalid     the manifest is not readable, or its contents are not valid
    │   ├── BuildMismatch       a file belongs to another build
    │   ├── EngineMismatch      an engine was made for another device, library version or graph
    │   ├── EngineNotBuilt      an engine must first be built on the machine that will run it
    │   ├── NewerFormat         written by a newer Tiercel than this one
    │   └── OlderFormat         written by an older Tiercel, in a format that is no longer read
    ├── StoreError              live values of users can't be read or written
    │   ├── StoreUnavailable    the store does not answer, or not in time
    │   ├── StoreDamaged        its contents differ from what was written
    │   └── StoreMismatch       its columns or ids have other types than the release's
    ├── InvalidConfig           a generated model repository breaks one of Triton's rules
    ├── VerificationFailed      a compiled part differs from its source
    ├── EngineBuildFailed       a graph could not be built into an engine
    ├── DeviceUnavailable       there is no usable GPU, or it has too little memory left
    ├── MachineFault            the disk, its permissions, the memory or a mount is at fault
    ├── ServerError             the inference server can't be started or does not answer
    │   ├── PortTaken           something else listens on the port
    │   ├── TritonMissing       there is no server binary
    │   ├── LibPythonMissing    this Python has no shared library, which Triton's Python backend needs
    │   └── ServerFailed        the server started and did not become healthy, or died
    └── BenchError              the benchmark can't be run, or what it printed can't be read
        └── PerfAnalyzerMissing perf_analyzer is not available on this machine

A message names the stage or file, what was expected, what was found, and what to do.
"""

from __future__ import annotations


class TiercelError(Exception):
    """Base of every error that Tiercel raises on purpose."""


class RequestError(TiercelError):
    """One request is at fault. It gets this error, and the rest of the batch is answered."""


class InvalidRequest(RequestError):
    """The input can never be answered, however often it is sent."""


class UnknownId(RequestError):
    """Something that the request names does not exist in this release."""


class StageFailed(TiercelError):
    """A stage failed on input that it had accepted: a bug, or a faulty machine."""

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(f"stage {stage}: {type(cause).__name__}: {cause}; see the server's log")
        self.stage = stage


class InvalidSettings(TiercelError):
    """Settings contradict each other, or do not fit the data or model that they refer to."""


class KindUnavailable(TiercelError):
    """A kind is in no table, or the library that it needs is not installed."""


class ReleaseError(TiercelError):
    """The release on disk is at fault."""


class ReleaseMissing(ReleaseError):
    """There is no release where one was expected."""


class DestinationTaken(ReleaseError):
    """Something exists where a release is to be written."""


class ArtefactMissing(ReleaseError):
    """The manifest names a file that does not exist."""


class ArtefactCorrupt(ReleaseError):
    """A file differs from its description in the manifest or in its own header."""


class ManifestInvalid(ReleaseError):
    """The manifest is not readable, or its contents are not valid."""


class BuildMismatch(ReleaseError):
    """A file belongs to another build than the manifest."""


class EngineMismatch(ReleaseError):
    """A compiled engine was made for another device, library version or graph than the present one."""


class EngineNotBuilt(ReleaseError):
    """An engine's file does not exist yet; it must be built on the machine that will run it."""


class NewerFormat(ReleaseError):
    """The file was written by a newer Tiercel; upgrade this one or export again."""


class OlderFormat(ReleaseError):
    """The file was written by an older Tiercel, in a format that is no longer read."""


class StoreError(TiercelError):
    """Live values of users cannot be read or written."""


class StoreUnavailable(StoreError):
    """The store does not answer, or not in time."""


class StoreDamaged(StoreError):
    """The store's contents differ from what was written."""


class StoreMismatch(StoreError):
    """The store holds columns or ids of other types than the release's."""


class InvalidConfig(TiercelError):
    """A generated model repository breaks one of Triton's rules."""


class VerificationFailed(TiercelError):
    """A compiled part differs from its source."""


class EngineBuildFailed(TiercelError):
    """A graph could not be built into an engine."""


class DeviceUnavailable(TiercelError):
    """There is no usable GPU, its driver is too old, or it has too little memory left."""


class MachineFault(TiercelError):
    """The machine is at fault: a full disk, a missing permission, too little memory, a lost mount."""


class ServerError(TiercelError):
    """The inference server cannot be started or does not answer."""


class PortTaken(ServerError):
    """Something else listens on the port."""


class TritonMissing(ServerError):
    """There is no server binary."""


class LibPythonMissing(ServerError):
    """The running Python has no shared library, which Triton's Python backend needs."""


class ServerFailed(ServerError):
    """The server started and did not become healthy, or died."""


class BenchError(TiercelError):
    """The benchmark cannot be run, or what it printed cannot be read."""


class PerfAnalyzerMissing(BenchError):
    """perf_analyzer, or a library that it needs, is not available on this machine."""
