"""What shall be built of a graph: written by the export, read by whoever builds, maybe on another machine."""

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
        The ONNX file that is parsed, beside this one: strongly typed, its inputs and outputs float32 or
        integers.
    network_sha256
        Its checksum, weights beside it included.
    batch
        The least, the usual and the largest batch: the plan's one optimization profile. Kernels are chosen
        for the usual one.
    workspace_mb
        Scratch memory that a kernel may ask for on the device, in megabytes.
    structure_sha256
        Checksum of the graph without its weights: of two graphs with the same, one's plan can be refitted
        with the other's weights. Empty where nobody computed it.
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
            It is not there, or says something else.
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
