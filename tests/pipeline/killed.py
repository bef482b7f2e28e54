"""The real command line, killed at a point chosen by what it has just written, or is just writing.

``python -m tests.pipeline.killed MOMENT PATTERN NTH ARGUMENTS...``: run the command with the arguments, and send
SIGKILL to it ``after`` (or ``before``: written, not yet in place) the NTH file whose path matches the pattern. Run
without arguments, or with a number, it is the matrix: so many kills of one benchmark, each followed by the same command
again, which has to end with the same files as an unbroken run. Exit code 1 names what differs.
"""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tests.helpers import forks

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits"},
    "validation": 100,
    "train_limit": 300,
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": {"fgsm": "fgsm", "pgd": {"name": "pgd", "steps": 3}},
    "evaluation": {"limit": 40, "batch_size": 20, "certificate": "quick"},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 3, "batch_size": 100, "snapshots": [0, 2]},
    "runs": {"natural": {}, "robust": {"defenses": [{"name": "pgd_at", "steps": 2}]}},
}
# What has just been written, and how often a run writes it.
POINTS: dict[str, int] = {
    "*/benchmark.json": 1,
    "*/run.json": 2,
    "*/checkpoint.pt": 6,
    "*/snapshots/*.safetensors": 4,
    "*/history.csv": 2,
    "*/model.safetensors": 2,
    "*/training.json": 2,
    "*/sparsity.json": 2,
    "*/files.json": 14,
    "*/outcomes/.pgd.parts/*.csv": 4,
    "*/outcomes/pgd.csv": 2,
    "*/outcomes/pgd.json": 2,
    "*/outcomes/clean.json": 2,
    "*/certificate/.parts/findings.json": 8,
    "*/certificate/.parts/*.safetensors": 8,
    "*/certificate/found.csv": 2,
    "*/certificate/certificate.json": 2,
    "*/leaderboard.csv": 1,
    "*/leaderboard.md": 1,
}
# What may differ: times, and the commit, where the source was edited in between.
TIMES = ("seconds", "train_seconds", "eval_seconds", "commit")


def signal_at(moment: str, pattern: str, nth: int, what: signal.Signals) -> None:
    """Let this process send itself a signal before or after it puts the NTH file of a pattern in its place."""
    from robustbench_sparse.foundation import files

    whole, seen = files._write, 0

    def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
        nonlocal seen
        hit = fnmatch.fnmatch(str(path), pattern)
        seen += hit

        def fill_and_signal(file: BinaryIO) -> None:
            fill(file)
            file.flush()
            os.kill(os.getpid(), what)

        last = hit and seen == nth
        whole(path, fill_and_signal if last and moment == "before" else fill)
        if last and moment == "after":
            os.kill(os.getpid(), what)

    files._write = write


def killed_command(moment: str, pattern: str, nth: int, arguments: list[str]) -> None:
    """This process as the command, with the kill in it."""
    from robustbench_sparse.cli import main as cli

    signal_at(moment, pattern, nth, signal.SIGKILL)
    sys.argv = ["robustbench-sparse", *arguments]
    cli.main()


def command(folder: Path) -> list[str]:
    """The arguments of the benchmark's run in a folder."""
    (folder / "tiny.json").write_text(json.dumps(CONFIG))  # JSON is YAML
    where = ["run", str(folder / "tiny.json"), "--out", str(folder / "results")]
    return [*where, "--quiet", "--device", "cpu", "--jobs", "1"]


def run(folder: Path, kill: tuple[str, str, int] | None = None) -> int:
    """The exit status of the benchmark's run, killed or not."""
    if kill is None:
        return forks.run(command(folder)).returncode
    return forks.run([*kill, *command(folder)], script=__file__).returncode


def state(folder: Path) -> dict[str, Any]:
    """Everything a run left, without what may differ."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "results").rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.endswith(".lock"):
            continue
        if path.name == "files.json":
            found[name] = sorted(json.loads(path.read_text()))
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name.startswith("leaderboard"):
            found[name] = _columns(path) if path.suffix == ".csv" else path.read_bytes()
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _columns(path: Path) -> str:
    import pandas as pd

    table = pd.read_csv(path)
    return str(table.drop(columns=[c for c in TIMES if c in table]).to_csv())


def points(count: int) -> list[tuple[str, str, int]]:
    """So many moments, each kind of file first: before and after it is in place, from the first to the last."""
    every = [
        (moment, pattern, nth)
        for nth in range(1, max(POINTS.values()) + 1)
        for moment in ("after", "before")
        for pattern, most in POINTS.items()
        if nth <= most
    ]
    return every[:count]


def differences(unbroken: dict[str, Any], folder: Path) -> list[str]:
    """Names of the files in which a run differs from the unbroken one."""
    mine = state(folder)
    return [name for name in {**unbroken, **mine} if unbroken.get(name) != mine.get(name)]


def main(count: int) -> int:
    """The matrix; see the module."""
    with tempfile.TemporaryDirectory() as scratch:
        assert run(Path(scratch)) == 0
        unbroken = state(Path(scratch))
    failures = 0
    for number, kill in enumerate(points(count), 1):
        with tempfile.TemporaryDirectory() as scratch:
            status = run(Path(scratch), kill)
            ended = run(Path(scratch))
            wrong = differences(unbroken, Path(scratch))
        fine = status == -signal.SIGKILL and ended == 0 and not wrong
        failures += not fine
        print(
            f"{number} {' '.join(map(str, kill))}: {'ok' if fine else f'{status} {ended} {wrong}'}",
            flush=True,
        )
    print(f"{failures} of {number} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        killed_command(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else len(points(10_000))))
