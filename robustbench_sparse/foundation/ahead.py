"""Processes of this package that begin before it is known what they will be told.

An interpreter takes seconds to import PyTorch. A command that is told how many processes are to work for it starts them
first, so that they import while it does itself and reads its images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

from robustbench_sparse.foundation.fences import VARIABLE
from robustbench_sparse.foundation.processes import command, environment

# What a process can import, and what it may write: another by now, perhaps, as where a plug-in lies beside a config.
DECISIVE = ("PYTHONPATH", VARIABLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """A process that listens on its standard input.

    Attributes:
        process: with pipes to its input and from its output.
        said: the file that it writes its standard error to.
        environment: what it was started with.
    """

    process: subprocess.Popen[str]
    said: IO[bytes]
    environment: dict[str, str]

    def stop(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not yet written to a process that is gone
                    stream.close()
        self.said.close()


_idle: dict[str, list[Started]] = {}  # by module


@contextlib.contextmanager
def started(module: str, count: int) -> Iterator[None]:
    """Begin so many processes that ``take`` hands out; those that nobody took end with the block."""
    waiting = _idle.setdefault(module, [])
    try:
        for _ in range(count):
            waiting.append(_begun(module))
        yield
    finally:
        drop(module)


def take(module: str) -> Started:
    """A process of a module: one that has begun, where it would begin alike now, else a new one."""
    now = environment()
    while waiting := _idle.get(module):
        begun = waiting.pop(0)
        same = all(begun.environment.get(name) == now.get(name) for name in DECISIVE)
        if same and begun.process.poll() is None:
            return begun
        begun.stop()
    return _begun(module)


def drop(module: str) -> None:
    """End those that nobody took."""
    for begun in _idle.pop(module, []):
        begun.stop()


def _begun(module: str) -> Started:
    said, known = tempfile.TemporaryFile("w+b"), environment()  # noqa: SIM115 (closed by ``stop``)
    process = subprocess.Popen(
        command(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=known
    )
    return Started(process=process, said=said, environment=known)
