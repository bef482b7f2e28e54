"""Reading files that may be anything: regular files only, and no more bytes than there may be."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from robustbench_sparse.data.base import DataError

MIB = 1 << 20
MAX_PIXELS = 1 << 26  # of one image, before it is decoded: 200 MB as RGB
LARGE_PIXELS = 1 << 24  # of an image that is decoded alone
_CHUNK = MIB
_UNIX, _ENCRYPTED = 3, 1  # of a zip's member: the system that made it, and a flag


def check_regular(path: Path | str, state: os.stat_result) -> None:
    """DataError unless it is a regular file: others may block for ever, or never end."""
    if stat.S_ISREG(state.st_mode):
        return
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = (
        "a folder" if stat.S_ISDIR(state.st_mode) else kinds.get(stat.S_IFMT(state.st_mode), "something else")
    )
    raise DataError(f"{path}: expected a regular file, got {kind}")


def check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """DataError unless a zip's member is a file or a folder that lies below the zip's own folder and can be read."""
    name = info.filename.replace("\\", "/")
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
    if not set(name.removesuffix("/").split("/")).isdisjoint(("", ".", "..")) or name[1:2] == ":":
        problem = "expected a name below the zip's own folder"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = f"expected a regular file, got {'a link' if kind == stat.S_IFLNK else 'something else'}"
    elif info.flag_bits & _ENCRYPTED:
        problem = "expected a file that is not encrypted"
    else:
        return
    raise DataError(f"{archive.filename}: {name}: {problem}")


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read.
        DataError: it is no regular file, or larger.
    """
    # Without waiting: opening a pipe that nobody writes to would block.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        check_regular(path, os.fstat(handle))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: larger than {limit / MIB:g} MiB (data.max_file_mib)")
    return data


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a zip's member of at most ``limit`` bytes, whatever size the zip claims.

    Raises:
        DataError: it is larger.
    """
    data = bytearray()
    with archive.open(info) as file:
        while chunk := file.read(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise DataError(f"{info.filename}: larger than {limit / MIB:g} MiB (data.max_file_mib)")
    return bytes(data)


def check_total(count: int, size: int, limit: int, where: str, what: str) -> None:
    """DataError where so many things of a size, in bytes, are more than there may be, or than there is memory for."""
    if count * size > limit:
        raise DataError(
            f"{where}: {what}: {count * size / MIB:.0f} MiB, more than {limit / MIB:g} MiB (data.max_total_mib)"
        )
    free = available_memory()
    if free is not None and count * size > free:
        raise DataError(
            f"{where}: {what}: {count * size / MIB:.0f} MiB, and {free / MIB:.0f} MiB of memory are free"
        )


def available_memory() -> int | None:
    """Bytes of memory that are free, caches included; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
