"""A further instance, as a process that opens a release, answers, and reports its private memory.

Pages that files back are shared by all processes that map them, so only memory that no file backs counts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.scale.exporting import output_of


def measure_opening(release: Path, user: int | bytes) -> dict[str, float]:
    """Return ``seconds`` to the first answer and ``private_bytes``, with the files in the page cache."""
    asked = json.dumps(user.decode() if isinstance(user, bytes) else user)
    command = [sys.executable, "-m", __name__, str(release), asked]
    output_of(command)
    return output_of(command)


def main(path: str, user: str) -> None:
    """Open the release, answer once, describe the answer, and print one JSON object."""
    # An instance has these imported anyway, so they do not count.
    import faiss  # noqa: F401
    import numpy as np
    import onnxruntime  # noqa: F401

    from benchmarks.features.instance import anonymous_bytes
    from tiercel_serving.release.opened import open_release
    from tiercel_serving.runtime.chain import Chain

    asked = json.loads(user)
    ids = np.array([[asked]]) if isinstance(asked, int) else np.array([[asked.encode()]], np.object_)
    before, begun = anonymous_bytes(), time.perf_counter()
    release = open_release(path)
    chain, describe = Chain.open(release), Chain.open(release, ["describe_items"])
    outputs, _ = chain.run({"user_id": ids})
    describe.run({"item_id": outputs["item_id"]})
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "private_bytes": anonymous_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
