"""Read the names in TensorRT's Python binding from its wheel: ``python read_trt_names.py WHEEL >> …``.

The wheels ``tensorrt-cu12-bindings`` need NVIDIA's libraries, which no registry has. The binding calls ten
of their functions, none of them during the import, so empty stubs are enough to list
its names. ``trt_names.json`` holds the results. Needs gcc; run by hand when a version is added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: Functions of NVIDIA's libraries that the binding needs.
FUNCTIONS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry
getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
""".split()  # noqa: SIM905

READ = """
import json, sys, tensorrt_bindings as trt
from tiercel_serving.engines.trt.flavours import NAMES
found = {}
for owner in NAMES:
    place = getattr(trt, owner) if owner else trt
    found[owner] = [name for name in dir(place) if not name.startswith("_") or name == "__version__"]
print(json.dumps({trt.__version__: found}))
"""


def main(wheel: Path) -> None:
    """Print version → class → names, with the module's own names under the empty string."""
    major = wheel.name.split("-")[1].split(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        zipfile.ZipFile(wheel).extractall(place)
        (place / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            name = f"lib{library}.so.{major}"
            options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, "stub.c"]
            subprocess.run(["gcc", *options], cwd=place, check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        print(json.dumps(json.loads(done.stdout), separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
