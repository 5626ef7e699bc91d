"""How a plan is built from a graph: written by the export, read by the build, maybe on another machine."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...errors import ArtefactCorrupt, ArtefactMissing

#: The file beside the graph.
FILE = "build.json"


class BuildSpecification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a plan is built.

    Parameters
    ----------
    network
        The name of the ONNX file to parse, beside this one: strongly typed, with inputs and outputs in
        float32 or integers.
    network_sha256
        Its SHA-256, including the weights beside it.
    batch
        The smallest, the usual and the largest batch, in users: the plan's one optimization profile. Kernels
        are chosen for the usual one.
    workspace_mb
        Limit of the device's scratch memory for a kernel, in MiB.
    structure_sha256
        SHA-256 of the graph without its weights. If two graphs have the same one, the plan of either can be
        refitted with the weights of the other. Empty if it was not computed.
    """

    network: str
    network_sha256: str
    batch: tuple[int, int, int]
    workspace_mb: int = 1024
    structure_sha256: str = ""

    def write(self, folder: Path) -> None:
        """Write it into an artefact's folder."""
        (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @staticmethod
    def read(folder: Path) -> BuildSpecification:
        """Read it from an artefact's folder.

        Raises
        ------
        ArtefactMissing, ArtefactCorrupt
            The file is missing, or is not valid.
        """
        file = folder / FILE
        if not file.is_file():
            raise ArtefactMissing(
                f"{file}: the specification of what is to be built is not there; export again"
            )
        try:
            return msgspec.json.decode(file.read_bytes(), type=BuildSpecification)
        except ValueError as error:
            raise ArtefactCorrupt(f"{file}: {error}; it was changed or damaged: export again") from error
