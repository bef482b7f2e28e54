"""The real command line in a process of its own, without the seconds that a new interpreter takes to import PyTorch.

A server imports once what every command imports, and a fork of it becomes the command: its own arguments, folder,
environment and output, and nothing but the imports of before. What a test shows about a process as such (what a new
interpreter imports, how the command is found) belongs into a subprocess; what it shows about kills, exit codes, lines
on stderr and files is the same here.

``python -m tests.helpers.forks FD`` is the server; it ends with the process that began it.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib
import itertools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
MODULE = "robustbench_sparse"
IMPORTED = (
    "robustbench_sparse.cli.main",
    "robustbench_sparse.benchmark",
    "robustbench_sparse.eval",
    "robustbench_sparse.workspace",
    "sklearn.datasets",
    "torch._dynamo",
)


# The test's side ------------------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        words = [sys.executable, "-m", "tests.helpers.forks", str(theirs.fileno())]
        self.process = subprocess.Popen(words, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self.ours = ours
        self.lines = ours.makefile("r")
        # What commands write; gone with this process.
        self.said = tempfile.TemporaryDirectory(prefix="rbs-forks-")
        atexit.register(ours.close)  # the server ends with it

    def ask(self, **request: Any) -> Any:
        self.ours.sendall((json.dumps(request) + "\n").encode())
        return json.loads(self.lines.readline())


_server = functools.cache(_Server)  # one for all tests of this process
_numbers = itertools.count()


@dataclasses.dataclass
class Command:
    """A command at work."""

    pid: int
    out: Path
    err: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number where one ended it; None while it works."""
        if self.returncode is None:
            self.returncode = _server().ask(do="poll", pid=self.pid)
        return self.returncode

    def wait(self) -> int:
        """The exit status, once it has ended."""
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """A signal to it, and to nobody where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """What it wrote, once it has ended: stdout and stderr."""
        self.wait()
        return self.out.read_text(), self.err.read_text()


def start(
    words: Sequence[object],
    *,
    script: str | Path | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Command:
    """Begin ``robustbench-sparse WORDS``, or another file with these words.

    Args:
        words: the arguments.
        script: a Python file to run in place of the command.
        cwd, env: its folder and its environment; this process's if None.
    """
    number = next(_numbers)
    out, err = (Path(_server().said.name) / f"{number}.{kind}" for kind in ("out", "err"))
    pid = _server().ask(
        do="start",
        words=[str(w) for w in words],
        script=None if script is None else str(script),
        cwd=str(cwd or Path.cwd()),
        env=dict(os.environ if env is None else env),
        out=str(out),
        err=str(err),
    )
    return Command(pid, out, err)


def run(
    words: Sequence[object],
    *,
    script: str | Path | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``robustbench-sparse WORDS`` from beginning to end; see ``start``.

    Raises:
        AssertionError: with what it said, where it is checked and did not end with 0.
    """
    begun = start(words, script=script, cwd=cwd, env=env)
    out, err = begun.communicate()
    assert begun.returncode is not None
    if check:
        assert begun.returncode == 0, err
    return subprocess.CompletedProcess([str(w) for w in words], begun.returncode, out, err)


# The server's side ----------------------------------------------------------------------------------------


def serve(fd: int) -> None:
    """Fork commands as long as somebody asks for them."""
    for name in IMPORTED:
        importlib.import_module(name)
    # A second thread would not be there in a fork, and what it held would stay locked.
    assert threading.active_count() == 1
    with socket.socket(fileno=fd) as asks, asks.makefile("r") as lines:
        for line in lines:
            request = json.loads(line)
            if request.pop("do") == "poll":
                pid, status = os.waitpid(request["pid"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            else:
                answer = os.fork()
                if not answer:
                    asks.close()
                    _become(**request)
            asks.sendall((json.dumps(answer) + "\n").encode())


def _become(
    words: list[str], script: str | None, cwd: str, env: dict[str, str], out: str, err: str
) -> NoReturn:
    """This fork as the command; it never comes back."""

    def command() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.path[0] = str(Path(script).parent) if script else cwd
        importlib.invalidate_caches()
        sys.argv = [script or MODULE, *words]
        try:
            if script:
                runpy.run_path(script, run_name="__main__")
            else:
                runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
        finally:
            atexit._run_exitfuncs()

    end_with(command, Path(out), Path(err))


def end_with(work: Callable[[], object], out: Path, err: Path) -> NoReturn:
    """Let this fork do one thing, write to these files, and end; the status is the one of an interpreter."""
    status = 1
    try:
        for number, path in ((1, out), (2, err)):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        work()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:  # without what was registered for the exit: that belongs to the process this one is forked from
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
