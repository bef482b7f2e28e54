"""Other processes of this package: what they can import, what they said last, and whether they are there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import sys
from pathlib import Path

from robustbench_sparse.foundation.fences import exported

WORKERS = "robustbench_sparse.workers"  # the module whose processes work on rows
_PARTS = 3  # of a process's name: host, number, token


def command(module: str, *arguments: str) -> list[str]:
    """Starts a module of the package with the Python that runs this process."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment; what it can import, a user's plug-ins too, the other one can."""
    return {**os.environ, **exported(), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def last_words(said: str, code: int) -> str:
    """The last line that a process wrote to its standard error, or else its exit code."""
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"code {code}"


@functools.cache
def this_machine() -> str:
    """A name of this machine as its processes see each other, different after a new start and in a container."""
    marks = []
    with contextlib.suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    host = socket.gethostname()
    digest = hashlib.sha256("\n".join([host, *marks]).encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9-]+", "-", host)[:40] + "-" + digest


def known_as(process: int, token: str) -> str:
    """A name for a process of this machine that is a file's name, and no other process's, now or later."""
    return f"{this_machine()}.{process}.{token}"


def has_ended(name: str) -> bool:
    """Whether a process, by a name of ``known_as``, is known to have ended: one of this machine that is not there."""
    parts = name.split(".")
    if len(parts) != _PARTS or parts[0] != this_machine() or not parts[1].isdecimal():
        return False
    try:
        os.kill(int(parts[1]), 0)
        state = Path(f"/proc/{parts[1]}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # another user's process, or a system without /proc
        return False
    return state in "ZX"  # killed, and its parent has not asked for it yet
