"""A large vocabulary is built without a Python loop, opens fast, and is shared by all instances."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tiercel_export.lowering.expressions import input_column
from tiercel_export.lowering.vocabulary import Vocabulary, encode
from tiercel_export.workflow.program import Output, schedule
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.release.artefacts import write_artefact

SMAPS = Path("/proc/self/smaps_rollup")

CHILD = textwrap.dedent(
    """
    import sys, time
    begin = time.perf_counter()
    import json
    from pathlib import Path
    import numpy as np
    from tiercel_serving.release.artefacts import open_artefact
    from tiercel_serving.columns import Column
    from tiercel_serving.features import FeatureProgram

    def private_kb():
        lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
        return sum(int(size) for name, size, *_ in lines if name in ("Private_Clean:", "Private_Dirty:"))

    folder = Path(sys.argv[1])
    before_kb, imported = private_kb(), time.perf_counter()
    artefact = open_artefact(folder / "artefact", "features", "b")
    program = FeatureProgram.open(artefact)
    opened = time.perf_counter()
    asked = json.loads((folder / "asked.json").read_text())
    values = np.empty(len(asked), object)
    values[:] = [text.encode() for text, _ in asked]
    ids = program.packed({"c": Column(values)}, len(values))["user_cat"]
    assert ids[:, 0].tolist() == [id for _, id in asked]
    one = [int(program.packed({"c": Column(values[i : i + 1])}, 1)["user_cat"][0, 0]) for i in range(500)]
    assert one == [id for _, id in asked[:500]]
    touched = sum(int(array.sum()) for array in artefact.arrays.values())  # as after many requests
    print("ready", flush=True)
    sys.stdin.readline()  # until the other instance has touched it all too
    print(json.dumps([imported - begin, opened - imported, private_kb() - before_kb]), flush=True)
    sys.stdin.readline()
    """
)


def numbered(size: int) -> Strings:
    """Return distinct strings of 10 to 13 bytes in shuffled order, built without a Python loop."""
    numbers = np.random.default_rng(0).permutation(size)
    texts = np.char.mod("%08d", numbers).astype("S8")
    tails = np.char.mod("-%d", numbers[::-1] % 9973).astype("S5")
    both = np.char.add(texts, tails)
    lengths = np.char.str_len(both)
    blob = both.view(np.uint8).reshape(size, -1)
    offsets = np.zeros(size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Strings(blob[np.arange(blob.shape[1]) < lengths[:, None]], offsets)


@pytest.mark.timed
@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's /proc/self/smaps_rollup")
@pytest.mark.parametrize("size", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_large_vocabulary(size: int, tmp_path: Path, record_property):
    keys = numbered(size)
    vocabulary = Vocabulary("c", "text", keys, np.arange(size) + 3, 3, None)
    expression = encode(input_column("c", "bytes", "bytes", False), vocabulary, 1, 2, "int64", cast=True)
    inputs = [{"name": "c", "dtype": "bytes", "is_list": False, "part": "user"}]
    begin = time.perf_counter()
    document, arrays = schedule("user", inputs, [Output("c", "cat", expression, None)])
    built_s = time.perf_counter() - begin
    write_artefact(tmp_path / "artefact", "features", "b", arrays, {"program": document})
    bytes_ = sum(array.nbytes for array in arrays.values())

    picked = np.random.default_rng(1).integers(0, size, 2000)
    asked = [(text.decode(), row + 3) for text, row in zip(keys.take(picked).objects(), picked, strict=True)]
    asked += [("nowhere", 2), ("", 2), ("0" * 200, 2), (asked[0][0] + "0", 2), (asked[0][0] + "\0", 2)]
    (tmp_path / "asked.json").write_text(json.dumps([(text, int(id)) for text, id in asked]))

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    instances = [subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], **pipes) for _ in range(2)]
    try:
        assert [instance.stdout.readline() for instance in instances] == ["ready\n", "ready\n"]
        figures = []
        for instance in instances:
            instance.stdin.write("\n")
            instance.stdin.flush()
            figures.append(json.loads(instance.stdout.readline()))
    finally:
        for instance in instances:
            instance.communicate("\n")
    for import_s, open_s, private_kb in figures:
        print(
            f"{size:,} strings, {bytes_ / 1e6:.0f} MB, built in {built_s:.1f} s; imports {import_s:.2f} s, "
            f"opened in {open_s * 1e3:.1f} ms, {private_kb} KB private"
        )
        record_property("open_ms", open_s * 1e3)
        record_property("private_kb", private_kb)
        assert open_s < 1
        assert private_kb * 1024 <= 0.05 * bytes_ + 2**20  # a megabyte for the answers and the interpreter
