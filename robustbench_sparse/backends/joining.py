"""Joining a Ray that runs already, or starting one here; what goes wrong is one line, and comes within seconds."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.errors import UserError, cut, one_line

LOCAL, AUTO = "local", "auto"
CONNECT_S = 5.0  # for an address to answer at all
JOIN_S = 30.0  # to join the cluster there
STORE = 100 << 20  # bytes of the object store: nothing large goes through it
# Folders of these file systems lie on other machines, or are no place for sockets.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p")
_LONGEST_TEMP = 40  # characters; the names of Ray's sockets go on, and a socket's name has 107 at most


def check_address(address: str) -> None:
    """UserError for an address that is none, or where nothing answers within ``CONNECT_S``."""
    if address in (LOCAL, AUTO):
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise UserError(f"--ray-address: expected local, auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as e:
        raise UserError(f"--ray-address {address}: nothing answers there: {one_line(e)}") from None


def join(address: str) -> None:
    """Start Ray, or join it.

    Raises:
        UserError: it is not there, or does not answer in time.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # One line of ours says what went wrong; Ray's own lines would tear the bars.
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    here: dict[str, Any] = {"object_store_memory": STORE, "include_dashboard": False}
    if address == LOCAL:
        with _said(address):  # here: what it starts ends with the thread that started it
            ray.init(**quiet, **here, address="local", _temp_dir=_temporary())
        _quiet()
        return
    _quiet()
    answered: list[BaseException | None] = []

    def try_it() -> None:
        try:
            ray.init(**quiet, address=address)
            answered.append(None)
        except BaseException as e:  # is told to the thread that waits
            answered.append(e)

    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(JOIN_S)
    with _said(address):
        if not answered:
            raise TimeoutError(f"something answers, but does not let us in within {JOIN_S:g} s")
        if answered[0] is not None:
            raise answered[0]


def _quiet() -> None:
    """Keep Ray from printing what becomes of its nodes: it would go where the table goes."""
    with contextlib.suppress(ImportError, AttributeError):
        worker: Any = importlib.import_module("ray._private.worker")
        if worker.print_to_stdstream is not None:
            worker.print_to_stdstream = lambda *_, **__: None


@contextlib.contextmanager
def _said(address: str) -> Iterator[None]:
    """What Ray raises, as a line."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as e:  # which errors Ray raises is not documented
        raise UserError(f"--ray-address {address}: {cut(one_line(e), 250)}") from None


def _temporary() -> str:
    """A folder on this machine's own disk for Ray's sockets and logs; its own default where that is one."""
    for folder in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if folder and len(folder) <= _LONGEST_TEMP and os.access(folder, os.W_OK) and not on_network(folder):
            return str(Path(folder) / "ray")
    raise UserError("no folder for Ray's files on this machine's own disk: give one by RAY_TMPDIR")


def on_network(folder: str, mounts: str | None = None) -> bool:
    """Whether a folder lies on another machine, as far as the system says.

    Args:
        folder: an absolute path.
        mounts: what is mounted, as in ``/proc/mounts``; read there by default.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:
            return False
    best = ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(), "", "", ""]
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = point, kind
    return best[1] in NETWORK or best[1].startswith("fuse.")
