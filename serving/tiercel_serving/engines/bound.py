"""What a compiled engine is bound to: the library version and the device, kept in a file beside it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import ArtefactCorrupt, ArtefactMissing, EngineMismatch

#: Suffix that gives the file's name when appended to the engine's.
SUFFIX = ".bound.json"


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The library, device and graph that an engine was compiled with, for and from.

    Parameters
    ----------
    library, version
        The library that compiled it and must run it, and its exact version.
    device
        A description of the device; two machines have the same one only if both can run the engine.
    inputs
        Name → NumPy dtype of its inputs, in the engine's order.
    outputs
        Names of its outputs, in the engine's order.
    network
        SHA-256 of the graph that it was built from; empty if there is no such file.
    refittable
        Whether it accepts the weights of another graph with the same structure.
    """

    library: str
    version: str
    device: str
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    network: str = ""
    refittable: bool = False

    def write(self, file: Path) -> None:
        """Write it beside the engine's file."""
        _place(file).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @staticmethod
    def read(file: Path) -> Bound:
        """Read what an engine's file is bound to.

        Raises
        ------
        ArtefactMissing, ArtefactCorrupt
            The description is missing, or is not valid.
        """
        place = _place(file)
        if not place.is_file():
            raise ArtefactMissing(f"{place}: what {file.name} is bound to is not there; export again")
        try:
            return msgspec.json.decode(place.read_bytes(), type=Bound)
        except ValueError as error:
            raise ArtefactCorrupt(f"{place}: {error}; it was changed or damaged: export again") from error

    def check(self, file: Path, outputs: tuple[str, ...], version: str, device: str, remedy: str) -> None:
        """Refuse an engine that this machine can't run.

        Raises
        ------
        EngineMismatch
            The library has another version here, or the engine was made for another device.
        ArtefactCorrupt
            It lacks one of the outputs.
        """
        for what, wanted, here in (("", self.version, version), ("device ", self.device, device)):
            if wanted != here:
                raise EngineMismatch(
                    f"{file}: made with {self.library} {self.version} for {self.device}, but here is "
                    f"{what or self.library + ' '}{here}; {remedy}"
                )
        check_outputs(file, outputs, self.outputs)


def check_outputs(file: Path, wanted: tuple[str, ...], there: tuple[str, ...]) -> None:
    """Refuse an engine without the outputs that its stage has."""
    missing = set(wanted) - set(there)
    if missing:
        raise ArtefactCorrupt(f"{file}: expected the outputs {sorted(missing)}; export again")


def _place(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)
