"""Detection of the machine's faults: a full disk, a missing permission, too little memory, a lost mount.

Libraries raise them in many forms: some without an errno, some without a file, some only as text. Messages
say where the fault is, what was needed and what was available.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .errors import MachineFault, TiercelError

#: Kind of fault → errno values.
_NUMBERS: Mapping[str, tuple[int, ...]] = {
    "space": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "permission": (errno.EACCES, errno.EPERM, errno.EROFS),
    "memory": (errno.ENOMEM,),
    "files": (errno.EMFILE, errno.ENFILE),
    "mount": (
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    ),
}
_KINDS = {number: kind for kind, numbers in _NUMBERS.items() for number in numbers}

#: Errno values that never come from sockets, so that an error without a file name is still about a file.
_OF_FILES = (errno.EROFS, errno.EIO, errno.ESTALE)

#: An errno in the message of an error without one; NumPy's message for a file that was written only in part;
#: and messages of libraries that are out of memory.
_IN_WORDS = re.compile(r"\b(?:os error|errno|Errno) (\d+)\b")
_WRITTEN_IN_PART = re.compile(r"\d+ requested and \d+ written")
_NO_MEMORY = re.compile(
    r"can't allocate memory|[Cc]annot allocate memory|[Ff]ailed to allocate memory|bad_alloc|out of memory"
    r"|failed to map segment from shared object|can't start new thread"
    # Messages of compilers, and of libraries that quote an error's type in a message of their own.
    r"|virtual memory exhausted|Killed signal terminated program|\bMemoryError\b"
)

#: Python's message if no temporary folder is usable; it tries several, and gives no reason.
_NO_TEMPORARY = "No usable temporary directory found"


@contextlib.contextmanager
def machine_faults(folder: Path, doing: str, written: Path | None = None) -> Iterator[None]:
    """Turn the machine's faults in a block into :class:`~tiercel_serving.errors.MachineFault`.

    Parameters
    ----------
    folder
        The folder that the block writes to, for messages.
    doing
        What the block does, such as ``writing the release``.
    written
        The directory that it actually fills, if that has a temporary name.

    Raises
    ------
    MachineFault
        The machine is at fault. Other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        fault = fault_behind(error, folder, doing, written)
        if fault is None:
            raise
        raise fault from error


def fault_behind(
    error: BaseException | None, folder: Path | None = None, doing: str = "", written: Path | None = None
) -> MachineFault | None:
    """Return the machine's fault that an error is, or that a Tiercel error was raised from; else None.

    The parameters are those of :func:`machine_faults`.
    """
    while error is not None and not isinstance(error, MachineFault):
        fault = None if isinstance(error, TiercelError) else fault_of(error, folder, doing, written)
        if fault is not None:
            return fault
        error = error.__cause__
    return None


def fault_of(
    error: BaseException, folder: Path | None = None, doing: str = "", written: Path | None = None
) -> MachineFault | None:
    """Return the MachineFault for an error, or None if it is not one; see :func:`machine_faults`."""
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY in str(error):
        remedy = "make room, give the permission, or name another folder in the variable TMPDIR"
        return MachineFault(f"{error.strerror}{f' while {doing}' if doing else ''}; {remedy}")
    number = _number(error)
    if number is None:
        return None
    kind = _KINDS[number]
    place = _place(error, folder, written, kind)
    if place is None and kind in ("permission", "mount") and number not in _OF_FILES:
        # The error may come from a socket.
        return None
    what = f"{os.strerror(number)}{f' while {doing}' if doing else ''}"
    return MachineFault(
        f"{'' if place is None else f'{place}: '}{what}; {_TOLD[kind](error, place, written)}"
    )


def _number(error: BaseException) -> int | None:
    """Return the errno of an error, if :data:`_KINDS` has it; else None."""
    text = str(error)
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _KINDS else None
    if isinstance(error, OSError) and _WRITTEN_IN_PART.search(text):
        return errno.ENOSPC
    if isinstance(error, (OSError, RuntimeError, ImportError)) or type(error).__name__ == "SafetensorError":
        for found in _IN_WORDS.findall(text):
            if int(found) in _KINDS:
                return int(found)
        if _NO_MEMORY.search(text):
            return errno.ENOMEM
        return next((number for number in _KINDS if f"({os.strerror(number)})" in text), None)
    return None


def _place(error: BaseException, folder: Path | None, written: Path | None, kind: str) -> Path | None:
    """Return the file or folder at fault, by the name that people know; None if unknown."""
    name = getattr(error, "filename", None)
    if isinstance(name, (str, bytes)) and name:
        file = Path(os.fsdecode(name))
        inside = written is not None and file.is_relative_to(written)
        return folder if inside else file
    if folder is not None and kind == "space":
        # Libraries also write temporary files: of the two folders, the one with less space is at fault.
        places = [folder]
        with contextlib.suppress(FileNotFoundError):  # there may be no usable temporary folder
            temporary = Path(tempfile.gettempdir())
            if temporary.stat().st_dev != _there(folder).stat().st_dev:
                places.append(temporary)
        return min(places, key=lambda path: shutil.disk_usage(_there(path)).free)
    return folder


def _there(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# ------------------------------------------------------------------------------- what there was, what to do


def _space(error: BaseException, place: Path | None, written: Path | None) -> str:
    if place is None:
        return "make room, or choose another folder"
    where = _there(place)
    usage, inodes = shutil.disk_usage(where), os.statvfs(where)
    needed = (
        0 if written is None else sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    )
    told = f"{_size(needed)} were written and more was needed, " if needed else ""
    told += f"{_size(usage.free)} of {_size(usage.total)} are free there"
    if inodes.f_files and not inodes.f_favail:
        told += ", and no file can be added (there are no inodes left)"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        told += f", and a file may have {_size(limit)} (ulimit -f)"
    return f"{told}; make room, or choose another folder"


def _permission(error: BaseException, place: Path | None, written: Path | None) -> str:
    if place is None:
        return "choose another folder"
    where = _there(place)
    found = where.stat()
    told = f"{where} is {stat.filemode(found.st_mode)} of user {found.st_uid}, "
    told += f"this process is user {os.geteuid()}"
    if os.statvfs(where).f_flag & os.ST_RDONLY:
        told += ", and its file system is read-only"
    return f"{told}; give it the permission, or choose another folder"


def _memory(error: BaseException, place: Path | None, written: Path | None) -> str:
    words = " ".join(str(error).split())
    available = _available_memory()
    told = f"{words}; " if words else ""
    told += "" if available is None else f"{_size(available)} are available; "
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        told += f"this process may have {_size(limit)} (ulimit -v); "
    return f"{told}close other programs, give smaller tables or batches, or take a larger machine"


def _available_memory() -> int | None:
    """Return the bytes of memory that the machine, or the container, has left; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        found.append(max(int(most) - int(used), 0))
    return min(found, default=None)


def _files(error: BaseException, place: Path | None, written: Path | None) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"this process may have {soft} open (at most {hard}); raise the limit (ulimit -n {hard})"


def _mount(error: BaseException, place: Path | None, written: Path | None) -> str:
    of = "" if place is None else f" of {place.absolute()}"
    return f"the file system{of} does not answer; check the disk, or mount it again, and try again"


_TOLD: Mapping[str, Callable[[BaseException, Path | None, Path | None], str]] = {
    "space": _space,
    "permission": _permission,
    "memory": _memory,
    "files": _files,
    "mount": _mount,
}


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
