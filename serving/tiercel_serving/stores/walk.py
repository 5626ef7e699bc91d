"""Read a whole embedded store: ``python -m tiercel_serving.stores.walk FOLDER`` counts its records.

A damaged file may end the process that reads it (LMDB maps it), so this runs in one of its own.
"""

from __future__ import annotations

import sys

import lmdb

from .records import SCHEMA_KEY, intact


def main() -> int:
    """Print the count, or say what is wrong on standard error; the exit code says which."""
    with lmdb.open(sys.argv[1], readonly=True, create=False, max_readers=1024) as env, env.begin() as reader:
        count, last, broken = 0, b"", 0
        for key, record in reader.cursor():
            if count and key <= last:
                sys.stderr.write("its keys are out of order\n")
                return 1
            broken += key != SCHEMA_KEY and not intact(record)
            count, last = count + 1, key
        expected = reader.stat()["entries"]
    if broken or count != expected:
        sys.stderr.write(f"of {expected} records {count} are found, {broken} differ from their checksum\n")
        return 1
    sys.stdout.write(str(count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
