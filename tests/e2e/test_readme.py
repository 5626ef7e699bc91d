"""Every command and example of the README runs as written, in order.

The other end-to-end tests share the resulting run and release.
"""

from __future__ import annotations

import re
import subprocess
import sys

from e2e.readme_reader import ROOT, Reader, blocks, shell_lines, typed_lines


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_runs(reader: Reader) -> None:
    unknown = [line for line in typed_lines() if not line.startswith(("tiercel ", "curl "))]
    assert not unknown, "commands that this test does not know how to run"
    try:
        reader.type_through()
        for line, output in reader.printed.items():
            assert output.strip(), f"$ {line}\nprinted nothing"
        for snippet in blocks("python"):
            code = reader.typed(snippet)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stderr}"
            assert len(done.stdout.splitlines()) == 10
    finally:
        reader.close()
