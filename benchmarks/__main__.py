"""``python -m benchmarks``: measure this package and its peers in one run, print and write the table."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import traceback
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import peers, report
from benchmarks.bench import SEED, Bench
from benchmarks.images import find_root
from benchmarks.lines import Line
from benchmarks.sizes import CPU, CUDA, QUICK
from benchmarks.table import ROWS
from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.errors import one_line

FOLDER = Path("results/benchmarks")


def main(arguments: list[str] | None = None) -> int:
    """Run the rows asked for; 0, or 1 when one of them raised."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    device = torch.device(options.device)
    sizes = QUICK if options.quick else CUDA if device.type == "cuda" else CPU
    # A quick run is a trial of the script: it reads real data only where it is told to.
    root = find_root(options.data_root) if options.data_root or not options.quick else None
    bench = Bench(device, sizes, root, lambda text: console.print(text, markup=False, highlight=False))

    began, lines, failed = time.perf_counter(), [], False
    for number, name in enumerate(options.only, 1):
        bench.say(f"[{number}/{len(options.only)}] {name} ...")
        row_began = time.perf_counter()
        try:
            found = ROWS[name].run(bench, ROWS[name].budget)
        except Exception as e:
            traceback.print_exc()
            reason = f"{type(e).__name__}: {one_line(e)[:200]}"
            found, failed = [Line(name, failed=reason)], True
        lines += [line.within(name) for line in found]
        bench.say(f"[{number}/{len(options.only)}] {name}: {time.perf_counter() - row_began:.1f} s")

    facts = {
        **_where(device),
        "sizes": "quick: a trial of the script, not a measurement" if options.quick else device.type,
        **bench.facts,
        "seconds in all": f"{time.perf_counter() - began:.0f}",
    }
    report.show(console, lines)
    for path in report.write(_out(options, device), facts, lines):
        bench.say(f"written: {path}")
    return int(failed)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--quick", action="store_true", help="a tiny network and few images: tries the script"
    )
    parser.add_argument("--only", type=_names, metavar="NAME,...", help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, help=f"file, written as .md and .csv (default: in {FOLDER})")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: RBS_DATA)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use")
    options.whole = options.only is None
    if options.whole:
        options.only = [name for name, row in ROWS.items() if row.default]
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    return names


def _out(options: argparse.Namespace, device: torch.device) -> Path:
    """The file asked for; else one for the machine, which trials and single rows leave alone."""
    if options.out is not None:
        path: Path = options.out
        return path
    name = report.machine(device, torch.get_num_threads())
    kind = "-quick" if options.quick else "" if options.whole else "-only-" + "-".join(options.only)
    return FOLDER / f"{name}{kind}"


def _where(device: torch.device) -> dict[str, object]:
    """Machine, versions, commit, date, seeds."""
    facts = describe(device)
    packages = facts.pop("packages")
    assert isinstance(packages, dict)
    for name in ("torchattacks", "foolbox"):
        packages[name] = peers.version(name)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        **facts,
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "seeds": f"networks and test images {SEED}; round k of an attack {SEED} + k",
    }


if __name__ == "__main__":
    sys.exit(main())
