"""The real command line, stopped for longer than its leases last, overtaken by another one, and woken up again.

``python -m tests.pipeline.stopped [N]`` is the matrix: N moments, chosen by what a command has just written or is just
writing (those of ``killed``). At each, one command is stopped by SIGSTOP, a second one takes its row over and ends, and
the first is woken up: it has to end with one line, and the files have to be those of an unbroken run. Then the same
with a whole chain of commands, each of which is stopped at the next moment. Exit code 1 names what differs.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import forks
from tests.pipeline import killed

EXPIRY = 0.5
Moment = tuple[str, str, int]  # before or after, a pattern, and which of the files that match
WOKEN = 2  # the exit code of a command whose row was taken over


def forked(folder: Path, log: str, moment: Moment | None = None) -> int:
    """The id of a new process that runs the command, and stops itself at the moment, if there is one.

    It is forked, so that it need not import anything; no thread and no kernel has run in this process.
    """

    def command() -> None:
        if moment is not None:
            killed.signal_at(*moment, signal.SIGSTOP)
        from robustbench_sparse.cli import main as cli

        sys.argv = ["robustbench-sparse", *killed.command(folder)]
        cli.main()

    process = os.fork()
    if not process:
        forks.end_with(command, folder / log, folder / log)
    return process


def ended(process: int) -> int | None:
    """The exit code of a process once it has ended; None once it has stopped."""
    _, status = os.waitpid(process, os.WUNTRACED)
    return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def begun(folder: Path) -> None:
    """A results' folder in which leases are in use."""
    from robustbench_sparse.foundation import leases

    leases.start(folder / "results" / killed.CONFIG["name"], EXPIRY)


def state(folder: Path) -> dict[str, Any]:
    """Everything a run left, without what may differ."""
    return {name: value for name, value in killed.state(folder).items() if "/.leases/" not in name}


def unbroken() -> dict[str, Any]:
    """What a run leaves that nothing stops."""
    with tempfile.TemporaryDirectory() as scratch:
        begun(Path(scratch))
        assert ended(forked(Path(scratch), "log")) == 0, (Path(scratch) / "log").read_text()
        return state(Path(scratch))


def problems(moments: Sequence[Moment], whole: dict[str, Any]) -> list[str]:
    """What is wrong after one command after another was stopped, each at a moment, and all were woken up at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, wrong = Path(scratch), []
        begun(folder)
        stopped = []
        for number, moment in enumerate(moments):
            process = forked(folder, f"log{number}", moment)
            code = ended(process)
            if code is None:
                stopped.append((process, f"log{number}", moment))
            else:
                wrong.append(f"{moment}: not stopped, code {code}")
        if (code := ended(forked(folder, "log"))) != 0:
            wrong.append(f"the last: code {code}: {(folder / 'log').read_text()}")
        before = state(folder)
        for process, log, moment in stopped:
            os.kill(process, signal.SIGCONT)
            code, said = ended(process), (folder / log).read_text().splitlines()
            if code == 0 and "leaderboard" in moment[1]:
                continue  # it has lost no row, and writes its table again
            if code != WOKEN or len(said) != 1 or "taken over by another process" not in said[0]:
                wrong.append(f"{moment}: code {code}: {said}")
        after = state(folder)
        wrong += [
            f"woken up, it changed {name}"
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]
        wrong += [f"differs: {name}" for name in {**whole, **after} if whole.get(name) != after.get(name)]
        return wrong


def main(count: int) -> int:
    """The matrix; see the module."""
    from robustbench_sparse import benchmark  # noqa: F401 (for the processes that are forked)

    whole, failures = unbroken(), 0
    moments = killed.points(count)
    for number, some in enumerate([*([m] for m in moments), moments], 1):
        wrong = problems(some, whole) if len(some) == 1 else chained(some, whole)
        failures += bool(wrong)
        title = " ".join(map(str, some[0])) if len(some) == 1 else f"a chain of {len(some)}"
        print(f"{number} {title}: {wrong or 'ok'}", flush=True)
    print(f"{failures} of {number} failed")
    return 1 if failures else 0


def chained(moments: Sequence[Moment], whole: dict[str, Any]) -> list[str]:
    """``problems`` of a chain, in which a moment that lies behind the command is no problem."""
    return [w for w in problems(moments, whole) if "not stopped, code 0" not in w]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else len(killed.points(10_000))))
