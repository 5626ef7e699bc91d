"""Read a whole embedded store: ``python -m tiercel_serving.stores.walk FOLDER`` counts its records.

LMDB maps the file, so a damaged one may kill the process that reads it. Hence this runs in a separate one.
"""

from __future__ import annotations

import sys

import lmdb

from .records import intact, is_user_key
from .sealed import unseal


class NotWhole(Exception):
    """A store lacks some of its records, or holds damaged ones."""


def count(folder: str) -> int:
    """Read all records of a store, and return their number.

    Raises
    ------
    NotWhole
        Records are missing, damaged or out of order.
    """
    with lmdb.open(folder, readonly=True, create=False, max_readers=1024) as env, env.begin() as reader:
        found, broken, last = 0, 0, b""
        for key, record in reader.cursor():
            if found and key <= last:
                raise NotWhole("its keys are out of order")
            broken += not is_whole(key, record)
            found, last = found + 1, key
        expected = reader.stat()["entries"]
    if broken or found != expected:
        raise NotWhole(f"of {expected} records {found} are found, {broken} are not what was written")
    return found


def is_whole(key: bytes, value: bytes) -> bool:
    """Whether a value is undamaged and belongs to this key."""
    return intact(value, key) if is_user_key(key) else unseal(key, value) is not None


def main() -> int:
    """Print the count and return 0, or print what is wrong to standard error and return 1."""
    try:
        sys.stdout.write(str(count(sys.argv[1])))
    except (NotWhole, lmdb.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
