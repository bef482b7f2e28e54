"""The processes that help to train one network: they are started beside the one that works on the row, and end with it.

``python -m robustbench_sparse.training.helpers`` is such a process. It gets all it has to know on its standard input,
and ends as soon as that does. The row's own process is the first of them: locks, progress, checkpoints and errors are
where they are without helpers. ``torchrun`` would start the whole command several times, and restart it by itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attacks.base import Threat
from robustbench_sparse.config.plan import RunPlan
from robustbench_sparse.config.plugins import look_in, places
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.devices import cpu_threads
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.processes import command, environment, last_words
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training.logs.base import Log
from robustbench_sparse.training.parallel import Lost, joined
from robustbench_sparse.training.trainer import Trainer

_READY = b"ready\n"
_GRACE_S = 10.0  # for a process that has ended to be seen as such


def train(
    run: RunPlan,
    data: PreparedData,
    threat: Threat,
    seed: int,
    checkpoint: Path,
    show: Progress,
    label: str = "",
    log: Log | None = None,
) -> Trained:
    """Train a run in this process and its helpers, ``run.devices`` in all; arguments as of ``Trainer``.

    On a CPU the processes share this one's threads. On GPUs each has one of its own, from the first on.

    Raises:
        UserError: a helper has ended; the others are ended, too. The same command goes on after the last whole epoch.
    """
    if run.devices == 1:
        return Trainer(run, data, threat, seed, checkpoint, show, label, log=log).train()
    what: dict[str, Any] = {
        "run": run,
        "data": data.moved("cpu"),
        "threat": threat,
        "seed": seed,
        "checkpoint": checkpoint,
    }
    threads = max(1, torch.get_num_threads() // run.devices)
    with tempfile.TemporaryDirectory() as folder:
        what |= {"meeting": Path(folder) / "meeting", "threads": threads, "device": data.device.type}
        helpers = _Helpers(run, what)
        try:
            helpers.wait()
            device = _device(data.device.type, 0)
            with cpu_threads(threads), joined(what["meeting"], 0, run.devices, device) as ranks:
                return Trainer(run, data, threat, seed, checkpoint, show, label, ranks, log).train()
        except Lost as e:
            raise UserError(helpers.said() or f"a process beside this one does not answer: {e}") from None
        finally:
            helpers.stop()


def check_handed(run: RunPlan) -> None:
    """UserError for a run that no other process could be told of."""
    own = [type(part).__qualname__ for part in run.parts() if type(part).__module__ == "__main__"]
    why = f"{own[0]} is defined in the program itself: put it into a module" if own else ""
    try:
        pickle.dumps(run)
    except Exception as e:  # a foreign plug-in may refuse in any way
        why = why or one_line(e)[:160]
    if why:
        raise UserError(
            f"runs.{run.label}.train.devices: expected 1, as other processes cannot get it: {why}"
        )


class _Helpers:
    """The processes from the second on, as the first one sees them."""

    def __init__(self, run: RunPlan, what: dict[str, Any]) -> None:
        self._count = run.devices
        self._said = [tempfile.TemporaryFile("w+b") for _ in range(1, run.devices)]  # noqa: SIM115 (see ``stop``)
        self._processes = [
            subprocess.Popen(
                command("robustbench_sparse.training.helpers"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment(),
            )
            for said in self._said
        ]
        text = pickle.dumps(what)
        for number, process in enumerate(self._processes, 1):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and ``wait`` says so
                process.stdin.write(pickle.dumps((number, places())) + text)
                process.stdin.flush()

    def wait(self) -> None:
        """Until all of them have begun; Lost for one that ends before."""
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != _READY:
                raise Lost("it did not begin")

    def said(self) -> str:
        """Which one has ended, and its last words; empty where none has."""
        for number, (process, said) in enumerate(zip(self._processes, self._said, strict=True), 2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=_GRACE_S / self._count)
                said.seek(0)
                words = last_words(said.read().decode(errors="replace"), code)
                return f"process {number} of the {self._count} that train this network ended: {words}"
        return ""

    def stop(self) -> None:
        """End them, wherever they are: only the first process writes."""
        for process, said in zip(self._processes, self._said, strict=True):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, said):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not yet written to a process that is gone
                        stream.close()


def _device(kind: str, number: int) -> torch.device:
    return torch.device("cuda", number) if kind == "cuda" else torch.device(kind)


@contextlib.contextmanager
def _ending_with_the_first() -> Iterator[None]:
    """End this process as soon as its standard input does; an interrupt is the first one's to see."""

    def listen() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=listen, daemon=True).start()
    yield


def main() -> None:
    """Help to train one run to its end."""
    number, folders = pickle.load(sys.stdin.buffer)  # from the process that started this one
    look_in(folders)
    what: dict[str, Any] = pickle.load(sys.stdin.buffer)
    run: RunPlan = what["run"]
    device = _device(what["device"], number)
    data: PreparedData = what["data"].moved(device)
    with _ending_with_the_first(), cpu_threads(what["threads"]):
        os.write(1, _READY)
        os.dup2(2, 1)  # what a plug-in prints must not fill a pipe that nobody reads
        with joined(what["meeting"], number, run.devices, device) as ranks:
            Trainer(
                run, data, what["threat"], what["seed"], what["checkpoint"], Silent(), ranks=ranks
            ).train()


if __name__ == "__main__":
    main()
