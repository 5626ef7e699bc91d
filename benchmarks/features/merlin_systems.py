"""Merlin Systems 23.8 in its own environment, which is built here, and a workflow's export for Triton.

Merlin Systems is NVIDIA's way to serve an NVTabular workflow. It gets a virtual environment of its own,
so that nothing of Tiercel is in its process. Its own ``Ensemble.export`` writes the models in that
environment, and Triton runs them there (``EXECUTION_ENV_PATH``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from tiercel_serving.errors import BenchError

VERSION = "23.8.0"
#: Newer pips refuse merlin-dataloader, see ``make setup``.
PIP = "pip==25.3"
#: All packages, as pip resolved them for Python 3.11 on Linux. ``merlin-systems`` is a source package.
PACKAGES = f"""\
absl-py==2.5.1
betterproto==1.2.5
certifi==2026.10.18
charset-normalizer==3.5.2
click==8.5.1
cloudpickle==3.1.2
dask==2023.9.2
dask-cuda==23.10.0
distributed==2023.9.2
fsspec==2026.9.0
googleapis-common-protos==1.76.0
grpcio==1.85.1
grpclib==0.4.9
h2==4.4.1
hpack==4.2.0
hyperframe==6.1.0
idna==3.20
importlib_metadata==10.2.0
Jinja2==3.1.6
lazy-importer==0.1.0
llvmlite==0.50.0
locket==1.0.0
MarkupSafe==3.0.4
merlin-core==23.8.0
merlin-dataloader==23.8.0
merlin-systems=={VERSION}
ml_dtypes==0.5.4
msgpack==1.2.4
multidict==7.2.1
npy-append-array==0.9.19
numba==0.68.1
numpy==1.26.4
nvtabular==23.8.0
packaging==26.3
pandas==1.5.3
partd==1.4.2
protobuf==6.33.6
psutil==7.2.2
pyarrow==21.0.0
pynvml==11.4.1
python-dateutil==4.0.0
python-rapidjson==1.25
pytz==2026.6
PyYAML==6.0.3
requests==2.34.2
scipy==1.17.1
sortedcontainers==2.4.0
stringcase==1.2.0
tblib==3.2.2
tensorflow-metadata==1.21.0
toolz==1.2.0
tornado==6.6.1
tqdm==4.70.1
treelite==2.4.0
treelite-runtime==2.4.0
tritonclient==2.73.0
typing_extensions==4.16.0
tzdata==2026.6
urllib3==2.8.0
zict==3.0.0
zipp==4.1.2
"""
#: File that is written last, so that an interrupted build starts again.
STAMP = ".ready"

#: Export of a workflow as in Merlin Systems' own documentation. ``Ensemble.export`` writes two models, the
#: workflow and an executor that calls it.
EXPORT = """\
import sys, warnings

warnings.simplefilter("ignore")
from merlin.systems.dag import Ensemble
from merlin.systems.dag.ops.workflow import TransformWorkflow
from nvtabular import Workflow

workflow = Workflow.load(sys.argv[1])
graph = workflow.input_schema.column_names >> TransformWorkflow(workflow)
Ensemble(graph, workflow.input_schema).export(sys.argv[2])
"""
#: Names of those models.
WORKFLOW_MODEL, EXECUTOR_MODEL = "0_transformworkflowtriton", "executor_model"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MerlinSystems:
    """Merlin Systems in an environment of its own.

    Parameters
    ----------
    folder
        The virtual environment.
    """

    folder: Path

    def export(self, workflow: Path, repository: Path) -> None:
        """Write the models that serve a saved workflow into a Triton model repository.

        Parameters
        ----------
        workflow
            A folder that ``Workflow.save`` wrote.
        repository
            The model repository; gets :data:`WORKFLOW_MODEL` and :data:`EXECUTOR_MODEL`.

        Raises
        ------
        BenchError
            The export failed.
        """
        _run(
            [str(self.folder / "bin" / "python"), "-c", EXPORT, str(workflow), str(repository)],
            f"export of {workflow} by Merlin Systems",
        )
        for model in (WORKFLOW_MODEL, EXECUTOR_MODEL):
            file = repository / model / "config.pbtxt"
            if not file.is_file():
                raise BenchError(f"{file}: expected it from Merlin Systems' export, but it was not written")
            config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
            config.parameters["EXECUTION_ENV_PATH"].string_value = str(self.folder)
            file.write_text(text_format.MessageToString(config), encoding="utf-8")


def find_merlin_systems(cache: Path, progress: Progress | None = None) -> MerlinSystems:
    """Return Merlin Systems' environment, after building it if needed, which takes half a minute and 0.8 GB.

    Parameters
    ----------
    cache
        The directory of environments, in which each set of packages has its own.
    progress
        Called as ``progress(packages seen, packages)`` while pip works.

    Raises
    ------
    BenchError
        It can't be built; if pip fails, the message ends with its output.
    """
    folder = environment_folder(cache)
    if not (folder / STAMP).is_file():
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            _build(folder, progress or (lambda done, total: None))
        except OSError as error:
            raise BenchError(f"{folder}: can't be written ({error}); name another with `--cache`") from error
    return MerlinSystems(folder)


def environment_folder(cache: Path) -> Path:
    """Return the folder of the environment for this Python and :data:`PACKAGES`.

    Scripts in an environment contain its path, so it is built in its final place.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(f"{sys.base_prefix} {PIP} {PACKAGES}".encode()).hexdigest()[:8]
    return cache.absolute() / f"{VERSION}-python{version}-{digest}"


def _build(folder: Path, progress: Progress) -> None:
    what = f"environment of Merlin Systems {VERSION} in {folder}"
    total = len(PACKAGES.split())
    progress(0, total)
    _run([sys.executable, "-m", "venv", str(folder)], what)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "install", "--quiet", PIP], what)
    wanted = folder / "packages.txt"
    wanted.write_text(PACKAGES, encoding="utf-8")
    seen: set[str] = set()

    def follow(line: str) -> None:
        if found := re.match(r"Collecting (\S+)", line):
            seen.add(found[1])
            progress(min(len(seen), total - 1), total)

    _run([*pip, "install", "--no-deps", "-r", str(wanted)], what, follow)
    _run([str(folder / "bin" / "python"), "-c", "import merlin.systems.dag"], what)
    (folder / STAMP).touch()
    progress(total, total)


def _run(command: list[str], what: str, follow: Callable[[str], None] | None = None) -> None:
    """Run a command without this process's ``PYTHON…`` variables; raise BenchError if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    lines: list[str] = []
    try:
        with subprocess.Popen(
            command,
            env=environment,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if follow is not None:
                    follow(line)
            status = process.wait()
    except OSError as error:
        raise BenchError(f"{what}: {command[0]} can't be started ({error})") from error
    if status != 0:
        tail = "\n".join(f"  {line}" for line in lines[-8:])
        raise BenchError(f"{what}: {Path(command[0]).name} exited with {status}, expected 0:\n{tail}")
