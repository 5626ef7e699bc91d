"""MovieLens-100K: found on disk or fetched from GroupLens, and checked; :mod:`.movielens` reads it.

Its licence forbids redistribution, so it is never part of this project: each machine fetches its own.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import httpx

from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of

from ..errors import DataCorrupt, DataMissing
from .dataset import Dataset, Progress
from .movielens import read_movielens
from .places import DATA_DIR_VARIABLE, data_dirs

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
FOLDER = "ml-100k"

#: MD5 and size in bytes of ``u.data``, as GroupLens publishes it.
RATINGS_MD5 = "6e47046882bad158b0efbb84cd5cb987"
RATINGS_BYTES = 1_979_173
#: Rows of each file.
ROWS = {"u.user": 943, "u.item": 1_682, "u.data": 100_000}

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_FILES = ("u.data", "u.user", "u.item", "u.genre")


class MovieLens100K(Settings, frozen=True, tag="MovieLens100K"):
    """MovieLens-100K: 943 users, 1,682 films, 100,000 ratings from 1997 and 1998.

    Looked for in ``data_dir``, ``$TIERCEL_DATA_DIR`` and ``./data`` (a folder ``ml-100k`` in one of
    them), else downloaded from GroupLens. Users have ``age``, ``gender``, ``occupation``, ``zip_code``
    and ``zip_prefix``; items ``title``, ``year``, ``released`` and ``genres``; interactions ``rating``.
    """

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Find or fetch it, check it, and read it."""
        return load_ml_100k(data_dir=data_dir, progress=progress)


def load_ml_100k(
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Dataset:
    """Find or fetch MovieLens-100K, check it, and read it; as :func:`~tiercel_pipelines.data.load_dataset`.

    ``transport`` is the HTTP transport of the download; None is the network.
    """
    found = find_ml_100k(data_dir) or fetch_ml_100k(_places(data_dir), progress, transport)
    check_ml_100k(found)
    return read_ml_100k(found)


def find_ml_100k(data_dir: str | Path | None = None) -> Path | None:
    """Return the folder with MovieLens-100K on this machine, unchecked, or None."""
    return next((place for place in _places(data_dir) if place.is_dir()), None)


def _places(data_dir: str | Path | None) -> list[Path]:
    """Return the folders to look at, in order; a download goes to the first."""
    return [root / FOLDER for root in data_dirs(data_dir)]


def fetch_ml_100k(
    places: Sequence[Path], progress: Progress | None = None, transport: httpx.BaseTransport | None = None
) -> Path:
    """Download MovieLens-100K into the first place; it appears there only when whole and checked."""
    target = places[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{FOLDER}.", dir=target.parent))
    except OSError as error:
        raise fault_of(error, target.parent, "fetching ml-100k") or _missing(places, error) from error
    try:
        archive = scratch / f"{FOLDER}.zip"
        try:
            _download(archive, progress, transport)
        except (httpx.HTTPError, OSError) as error:
            fault = fault_of(error, target.parent, "fetching ml-100k", scratch)
            raise fault or _missing(places, error) from error
        unpacked = _unpack(archive, scratch / FOLDER)
        check_ml_100k(unpacked)
        # Another process may have fetched it meanwhile, which is as good.
        if not target.is_dir():
            unpacked.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _missing(places: Sequence[Path], error: Exception) -> DataMissing:
    looked = ", ".join(str(place.absolute()) for place in places)
    return DataMissing(
        f"ml-100k: not found in {looked}, and {URL} could not be downloaded to the first of them "
        f"({type(error).__name__}: {error}); connect to the internet, or put the unpacked {FOLDER} folder "
        f"there, or let {DATA_DIR_VARIABLE} name the folder that holds it; the synthetic data set needs no "
        "download"
    )


def _download(archive: Path, progress: Progress | None, transport: httpx.BaseTransport | None) -> None:
    with httpx.Client(transport=transport, follow_redirects=True, timeout=_TIMEOUT) as client:
        with client.stream("GET", URL) as response, archive.open("wb") as file:
            response.raise_for_status()
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdigit() else None
            done = 0
            for chunk in response.iter_bytes(1 << 16):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(f"downloading {FOLDER}.zip", done, total)


def _unpack(archive: Path, target: Path) -> Path:
    """Copy the wanted members out by name, so that no path in the archive is ever trusted."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as source:
            for name in (*_FILES, "README"):
                with source.open(f"{FOLDER}/{name}") as member, (target / name).open("wb") as file:
                    shutil.copyfileobj(member, file)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DataCorrupt(
            f"{URL}: expected a zip archive with {FOLDER}/u.data and its neighbours, got something else "
            f"({error}); the download was cut off or replaced on its way: try again"
        ) from error
    return target


def check_ml_100k(folder: Path) -> None:
    """Check that a folder holds the whole of MovieLens-100K: files, size and checksum of ``u.data``, rows."""
    again = (
        f"delete {folder} and run again to download it anew; other data of this form is read by "
        f"dataset=MovieLens({str(folder)!r})"
    )
    for name in _FILES:
        if not (folder / name).is_file():
            raise DataMissing(f"{folder / name}: missing from the ml-100k folder; {again}")
    ratings = (folder / "u.data").read_bytes()
    if len(ratings) < RATINGS_BYTES:
        raise DataCorrupt(
            f"{folder / 'u.data'}: truncated: expected {RATINGS_BYTES} bytes, found {len(ratings)}; {again}"
        )
    digest = hashlib.md5(ratings, usedforsecurity=False).hexdigest()
    if digest != RATINGS_MD5:
        raise DataCorrupt(f"{folder / 'u.data'}: expected the MD5 {RATINGS_MD5}, found {digest}; {again}")
    for name, expected in ROWS.items():
        rows = (folder / name).read_bytes().rstrip(b"\n").count(b"\n") + 1
        if rows != expected:
            state = "truncated" if rows < expected else "changed"
            raise DataCorrupt(f"{folder / name}: {state}: expected {expected} rows, found {rows}; {again}")


def read_ml_100k(folder: Path) -> Dataset:
    """Read the tables of a checked folder (see :class:`~tiercel_pipelines.data.MovieLens100K`)."""
    try:
        return read_movielens(folder, FOLDER)
    except DataCorrupt as error:
        raise DataCorrupt(
            f"{folder}: the ml-100k tables cannot be read ({error}); delete the folder and run again"
        ) from error
