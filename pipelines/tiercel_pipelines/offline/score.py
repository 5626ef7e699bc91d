"""Every user's recommendations, as served, in a Parquet file, for e-mails and caches.

The stages that Triton would run are run in this process, on blocks of users; no server is needed. Memory
holds one block and one row group, regardless of the number of users.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel_serving.lookups.lookup import read_keys
from tiercel_serving.release.opened import Release, check_files, open_release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import STATUS_NAMES
from tiercel_serving.spec import Array
from tiercel_serving.stores.memory_mapped import USER_LOOKUP

from ..data import Progress
from ..errors import DataCorrupt, DataMissing, EvaluationError
from ..features.parquet_files import open_parquet, parquet_files, unreadable, whole_file

#: Number of users in a row group of the output, and in a batch read from a file.
GROUP = 8_192


@dataclass(frozen=True)
class Scored:
    """The file written by :func:`score_release`, its number of users and items, and the duration.

    ``known`` counts the users that the release knows.
    """

    output: Path
    users: int
    known: int
    items: int
    seconds: float

    @property
    def users_per_s(self) -> float:
        """Users per second, reading and writing included."""
        return self.users / self.seconds


def score_release(
    release: Release | str | Path,
    output: str | Path,
    *,
    users: Path | None = None,
    k: int | None = None,
    batch_users: int = 256,
    progress: Progress | None = None,
) -> Scored:
    """Write each user's recommendations, as the server would answer a request with only a user id and k.

    The file has one row per user, in the users' order. Its columns are the id under its own name, ``item_id``
    (a list of raw ids, best first), ``score`` (a list of float32) and ``status`` (a name of ``STATUS_NAMES``:
    what is known of the user). Both lists are as long as the answer.

    Parameters
    ----------
    release, output
        The release, and the file to write, which appears under its name only when it is complete.
    users
        A Parquet file, or a folder of them, with the ids of the users to score; None scores every user of the
        release.
    k
        Maximum number of items per user; None is the recipe's ``k_default``.
    batch_users
        Number of users that go through the stages in one batch.
    progress
        Called after each batch.

    Raises
    ------
    EvaluationError
        If ``k`` is below 1 or more than the release serves.
    DataError
        If the file of users cannot be read, lacks the column, or holds ids of another type or nulls.
    ReleaseError
        If a file of the release is missing or changed.
    MachineFault
        If the disk is full.
    """
    opened = release if isinstance(release, Release) else open_release(release)
    settings, catalogue = opened.settings, opened.manifest.catalogue
    wanted = settings.k_default if k is None else k
    if not 1 <= wanted <= settings.k_max:
        raise EvaluationError(
            f"k = {wanted}: {opened.path} answers with 1 to {settings.k_max} items; ask for as many, or "
            "raise serving.k_max in the recipe"
        )
    check_files(opened)
    chain, begun = Chain.open(opened), time.perf_counter()
    total, blocks = _stored(opened) if users is None else _listed(users, opened)
    item_type = pa.string() if catalogue.item_id_dtype == "bytes" else pa.int64()
    user_type = pa.string() if catalogue.user_id_dtype == "bytes" else pa.int64()
    schema = pa.schema(
        {
            catalogue.user_id_column: user_type,
            "item_id": pa.list_(item_type),
            "score": pa.list_(pa.float32()),
            "status": pa.string(),
        },
        metadata={"tiercel.build_id": opened.build_id},
    )
    done = known = items = 0
    with whole_file(Path(output)) as partial, pq.ParquetWriter(partial, schema) as writer:
        for block in blocks:
            parts = []
            for start in range(0, len(block), batch_users):
                ids = block[start : start + batch_users]
                answer = chain.run({"user_id": ids[:, None], "k": np.full((len(ids), 1), wanted, np.int32)})[
                    0
                ]
                parts.append(_rows(ids, answer, schema))
                done += len(ids)
                known += int(np.count_nonzero(answer["status"] == 0))
                items += int(answer["count"].sum())
                if progress is not None:
                    progress("users", done, total)
            writer.write_table(pa.concat_tables(parts), row_group_size=GROUP)
    return Scored(Path(output), done, known, items, time.perf_counter() - begun)


def _rows(ids: Array, answer: dict[str, Array], schema: pa.Schema) -> pa.Table:
    """Return a batch's rows, with the real places of each answer only."""
    real = np.arange(answer["score"].shape[1]) < answer["count"]
    ends = pa.array(np.append(0, np.cumsum(answer["count"][:, 0])).astype(np.int32))
    status = np.array(STATUS_NAMES, object)[answer["status"][:, 0]]
    columns = [
        _ids(ids, schema.types[0]),
        pa.ListArray.from_arrays(ends, _ids(answer["item_id"][real], schema.types[1].value_type)),
        pa.ListArray.from_arrays(ends, pa.array(answer["score"][real], pa.float32())),
        pa.array(status, pa.string()),
    ]
    return pa.table(columns, schema=schema)


def _ids(ids: Array, dtype: pa.DataType) -> pa.Array:
    if pa.types.is_string(dtype):
        return pa.array(ids, pa.binary()).cast(pa.string())
    return pa.array(ids, dtype)


def _stored(release: Release) -> tuple[int, Iterator[Array]]:
    """Return the number of users in a release, and their ids in blocks."""
    keys = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
    return len(keys), (keys[start : start + GROUP] for start in range(0, len(keys), GROUP))


def _listed(path: Path, release: Release) -> tuple[int, Iterator[Array]]:
    """Return the number of users that files list, and their ids in blocks."""
    catalogue = release.manifest.catalogue
    name, is_text = catalogue.user_id_column, catalogue.user_id_dtype == "bytes"
    files = parquet_files([path])
    total = 0
    for file in files:
        with open_parquet(file) as opened:
            if name not in opened.schema_arrow.names:
                raise DataMissing(
                    f"{file}: expected a column {name!r} with the ids of users, the file has "
                    f"{', '.join(opened.schema_arrow.names)}; rename or add it"
                )
            total += opened.metadata.num_rows

    def blocks() -> Iterator[Array]:
        for file in files:
            yield from _ids_of_file(file, name, is_text)

    return total, blocks()


def _ids_of_file(file: Path, name: str, is_text: bool) -> Iterator[Array]:
    try:
        with open_parquet(file) as opened:
            for batch in opened.iter_batches(GROUP, columns=[name]):
                yield _raw_ids(batch.column(0), is_text, f"{file}: column {name!r}")
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _raw_ids(ids: pa.Array, is_text: bool, where: str) -> Array:
    """Return the ids of a file as the store holds them, as bytes or int64."""
    if ids.null_count:
        raise DataCorrupt(f"{where}: {ids.null_count} of the ids are null; drop those rows")
    came = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    fits = (
        pa.types.is_string(came) or pa.types.is_large_string(came) if is_text else pa.types.is_integer(came)
    )
    if not fits:
        kind = "text" if is_text else "integers"
        raise DataCorrupt(f"{where}: expected {kind}, the file holds {ids.type}; convert the ids")
    plain = ids.cast(pa.binary() if is_text else pa.int64())
    return np.asarray(plain.to_numpy(zero_copy_only=False))
