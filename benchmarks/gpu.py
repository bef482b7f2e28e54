"""``python -m benchmarks.gpu``: what one GPU works off overnight, in pieces of at most ten minutes.

Each item of the list is a command that goes on where it stood. A piece runs it for so many seconds and then interrupts
it; ``--once`` ends after one piece, for machines that are lent by the minute. How far the list is stands in
``gpu.json`` of the output folder; an item that fails is noted there with its last line, and the next one begins.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import ROWS
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.foundation.processes import command, environment, last_words

STATE, LOGS = "gpu.json", "logs"
GRACE_S = 40.0  # in which an interrupted command ends by itself
IDLE = 3  # pieces in a row that changed no file, after which an item is given up
GAPS = 1  # a benchmark's exit code where some row has a gap: it is done as far as it can be
CONFIGS = ("cifar10_dinh_4_5", "cifar10_adversarial_pruning", "cifar10_bregman_3")
JPEG = ("data.name=image_folder", "data.path=cifar10-jpeg.zip", "data.label=CIFAR-10 (JPEG)")
FINISHED = ("done", "gaps", "failed", "stuck")


@dataclass(frozen=True)
class Item:
    """One entry of the list.

    Attributes:
        name: how it is asked for.
        words: its command.
        out: what it writes to as it gets on; a command that writes nothing there has to end within one piece.
    """

    name: str
    words: list[str]
    out: Path


def listed(options: argparse.Namespace) -> Iterator[Item]:
    """The whole list in its order: tests, timings, then the benchmarks that are too long for a processor."""
    out, device = options.out, ["--device", options.device]
    root = [] if options.data_root is None else ["--data-root", str(options.data_root)]
    cuda = [] if options.device == "cpu" else ["-m", "cuda"]
    tests = ["tests"] if options.tests is None else options.tests
    yield Item("tests", command("pytest", "-q", "-p", "no:cacheprovider", *cuda, *tests), out / "tests")
    for row, entry in ROWS.items():
        if entry.default:
            words = ["--only", row, "--out", str(out / "bench" / row), *device, *root]
            words += ["--quick"] if options.quick else []
            yield Item(f"bench:{row}", command("benchmarks", *words), out / "bench")
    for config in CONFIGS:
        changes = [*([] if options.original else JPEG), *options.changes]
        words = [str(options.configs / f"{config}.yaml"), "--out", str(out), "--quiet", *device, *root]
        words += ["--jobs", str(options.jobs), "--variant", "gpu"]
        words += [word for change in changes for word in ("--set", change)]
        yield Item(config, command("robustbench_sparse", "run", *words), out / f"{config}@gpu")


def main(arguments: list[str] | None = None) -> int:
    """Work on the list; 0 once all of it is finished without a failure, 3 while something is left, else 1."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    state_path = options.out / STATE
    state: dict[str, dict[str, Any]] = read_json(state_path) if state_path.exists() else {}
    chosen = [item for item in listed(options) if not options.only or item.name in options.only]
    for item in chosen:
        while state.get(item.name, {}).get("status") not in FINISHED:
            known = state.setdefault(item.name, {"status": "begun", "pieces": 0, "idle": 0, "seconds": 0.0})
            known.update(_piece(item, known, options))
            write_json(state_path, state)
            print(
                f"{item.name}: {known['status']} after {known['seconds']:.0f} s. {known['said']}", flush=True
            )
            if options.once:
                left = [i for i in chosen if state.get(i.name, {}).get("status") not in FINISHED]
                return 3 if left else _code(state)
    return _code(state)


def _piece(item: Item, known: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Run an item's command for one piece; what is to be noted of it."""
    logs = options.out / LOGS
    logs.mkdir(exist_ok=True)
    before, began = _stamp(item.out), time.monotonic()
    with (logs / f"{item.name.replace(':', '-')}.log").open("a+b") as log:
        start = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            item.words, stdout=log, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
        try:
            code: int | None = process.wait(max(options.piece - GRACE_S, 1.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        log.seek(start)
        said = log.read().decode(errors="replace")
    idle = 0 if _stamp(item.out) != before else known["idle"] + 1
    if code is None:
        status = "stuck" if idle >= IDLE else "begun"
    else:
        status = {0: "done", GAPS: "gaps"}.get(code, "failed")
    return {
        "status": status,
        "pieces": known["pieces"] + 1,
        "idle": idle,
        "seconds": round(known["seconds"] + time.monotonic() - began, 1),
        "said": "" if code in (0, None) else last_words(said, code),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and all it has started; kill what does not end in time."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, sign)
        try:
            process.wait(GRACE_S / 2)
        except subprocess.TimeoutExpired:
            continue


def _stamp(folder: Path) -> tuple[int, int]:
    """How many files a folder holds, and when the last of them was written."""
    times = [path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()]
    return len(times), max(times, default=0)


def _code(state: dict[str, dict[str, Any]]) -> int:
    return int(any(known["status"] in ("failed", "stuck") for known in state.values()))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog="example: python -m benchmarks.gpu --data-root DIR, with DIR/cifar10-jpeg.zip",
    )
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: RBS_DATA)")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="default: results/gpu")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--piece", type=float, default=600, help="seconds of one piece (default: 600)")
    parser.add_argument("--once", action="store_true", help="end after one piece")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ITEM,...", help="of the list")
    parser.add_argument("--list", action="store_true", help="show the list, and end")
    parser.add_argument("--jobs", type=int, default=3, help="networks side by side on the GPU (default: 3)")
    parser.add_argument("--original", action="store_true", help="CIFAR-10 itself in place of its JPEG copy")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="timings of a tiny network: tries the script")
    parser.add_argument("--tests", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = [item.name for item in listed(options)]
    unknown = sorted(set(options.only or []) - set(names))
    if unknown:
        parser.error(f"no item {unknown[0]!r}; there are: {', '.join(names)}")
    if options.list:
        print("\n".join(names))
        parser.exit()
    return options


if __name__ == "__main__":
    sys.exit(main())
