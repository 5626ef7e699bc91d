"""The versions of Triton that Tiercel serves on, from which ``docs/compatibility.md`` is generated.

``python -m tiercel_serving.supervise.compatibility > docs/compatibility.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Triton:
    """One release of Triton.

    Attributes
    ----------
    release
        NVIDIA's version of the container, year and month.
    version
        The server's version.
    cuda, tensorrt, python
        The versions in it. CUDA is None without a GPU; TensorRT is None if NVIDIA's notes do not state it.
    compute_capability
        The lowest one that it supports; None without a GPU.
    evidence
        How far this project has tested it.
    """

    release: str
    version: str
    cuda: str | None
    tensorrt: str | None
    python: str
    compute_capability: str | None
    evidence: str


#: The container that ``docker/Dockerfile`` builds on.
RECOMMENDED = "26.07"

_UNRUN = "written for it, not run: no container engine, no GPU"

#: Versions as in the containers' release notes (docs.nvidia.com, ``rel-26-07.html`` and so on) and, for
#: Python, in the server repository's ``docs/introduction/compatibility.md``.
TRITONS: Sequence[Triton] = (
    Triton("24.10", "2.51", None, None, "3.10 to 3.12", None, "every test: the wheel `nvidia-pytriton` 0.7"),
    Triton("26.04", "2.68", "13.2.1", None, "3.12", "7.5", "the first that no HTTP request can end; not run"),
    Triton("26.05", "2.69", "13.2.1", None, "3.12", "7.5", "not run"),
    Triton("26.06", "2.70", "13.3.0", None, "3.12", "7.5", "not run"),
    Triton("26.07", "2.71", "13.3.1", None, "3.12", "7.5", _UNRUN),
)


@dataclass(frozen=True)
class Part:
    """One part of Tiercel: its extra, its purpose, its Python versions, and the packages that limit them."""

    extra: str
    does: str
    python: str
    why: str


#: A test compares the Python versions with pyproject.toml.
PARTS: Sequence[Part] = (
    Part(
        "",
        "calls a server: the client",
        "3.10 to 3.13",
        "NumPy 1.26 or 2, hpack 4, tritonclient 2.50 or later",
    ),
    Part("commands", "serves, on a Triton of its own", "3.10 to 3.13", "NumPy 1.26 or 2"),
    Part(
        "server", "serves, with the embedded Triton", "3.10 to 3.12", "`nvidia-pytriton` wants NumPy below 2"
    ),
    Part("export", "compiles a release", "3.10, 3.11", "NVTabular 23.8 wants pandas 1.5; torch 2.6 or later"),
    Part("pipelines", "trains and evaluates", "3.10, 3.11", "as `export`"),
)

HEAD = """\
# Supported versions

Written by `python -m tiercel_serving.supervise.compatibility > docs/compatibility.md`; a test compares them.
A release is made once and can be served by any of these: it contains NumPy arrays, ONNX graphs and FAISS
indexes, and no pickle.
"""

BETWEEN = """
The tests run on Python 3.11. On 3.10, set up by `make setup PYTHON=…/python3.10`, 1,821 of them ran in
November 2026 and passed, including parity with NVTabular, whole trainings, exports and answers of a real
Triton ([which](../tests/README.md)).

## Tiercel {version} × Triton × TensorRT × CUDA × Python

`docker/Dockerfile` builds on **{recommended}**. Security advisories have been published for Triton since
24.10, and before 26.04 one HTTP request can end the server ([why](operations.md#plain-http)).
"""

TAIL = """
Where TensorRT is "not said", NVIDIA's release notes refer to its
[support matrix](https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html). The container
reports its own version:

```bash
docker run --rm nvcr.io/nvidia/tritonserver:{recommended}-py3 dpkg-query -W "libnvinfer*"
```

A TensorRT plan runs only with the TensorRT that built it, on the kind of GPU that built it: build plans in
the container that will serve them.
"""


def markdown() -> str:
    """Return the whole text of ``docs/compatibility.md``."""
    from importlib.metadata import version

    parts = _table(
        ("install", "what it does", "Python", "reason"),
        (
            (f"`tiercel[{row.extra}]`" if row.extra else "`tiercel`", row.does, row.python, row.why)
            for row in PARTS
        ),
    )
    tritons = _table(
        (
            "container",
            "Triton",
            "TensorRT",
            "CUDA",
            "Python",
            "GPUs from compute capability",
            "seen by this project",
        ),
        (
            (
                f"**{row.release}**" if row.release == RECOMMENDED else row.release,
                row.version,
                (row.tensorrt or "not said") if row.cuda else "none",
                row.cuda or "none",
                row.python,
                row.compute_capability or "none",
                row.evidence,
            )
            for row in TRITONS
        ),
    )
    names = {"version": version("tiercel"), "recommended": RECOMMENDED}
    return "\n".join([HEAD, parts + BETWEEN.format(**names), tritons + TAIL.format(**names)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.stdout.write(markdown())
