"""``python -m benchmarks.scaling_out``: what a unit costs beside its own work, and a model of what many cost.

``stubs``: units that do nothing, on Ray on this machine. ``overhead``: real units, their own time taken within.
``model``: the driver alone up to 100 000 units, and what a cluster of any size takes, checked by a simulation in which
the driver is the real one and units pass in simulated time. ``cluster``: three nodes on this machine, of which two are
killed while they work; the table has to be that of one process. Nothing heavy is imported up here: stub units come by.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_sparse.backends.base import Report, Unit

SEED = 0
SECONDS = "seconds.txt"


def stub(start: str, label: str, seed: int, wait: bool) -> tuple[str, str]:
    """A unit that does nothing."""
    return "done", ""


def timed(start: str, label: str, seed: int, wait: bool) -> tuple[str, str]:
    """A real unit that says when it began and ended."""
    from robustbench_sparse.backends import units

    began = time.time()
    answer = units.work_on(start, label, seed, wait)
    with (Path(start).parents[2] / SECONDS).open("a") as file:
        file.write(json.dumps([began, time.time()]) + "\n")
    return answer


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def made_up(count: int) -> list[Unit]:
    """So many units, a tenth of them with another one that has to be trained before."""
    from robustbench_sparse.backends.base import Unit

    return [
        Unit(
            run_id=f"run{i}",
            label="run",
            seed=i,
            cpus=1,
            needs=(f"run{i - 1}",) if i % 10 == 9 else (),
        )
        for i in range(count)
    ]


def worked(units: Sequence[Unit], engine: Any, folder: Path) -> float:
    """Seconds of the driver's loop over all units."""
    from robustbench_sparse.backends.board import Board
    from robustbench_sparse.backends.course import work_off
    from robustbench_sparse.foundation.progress import Silent

    began = time.perf_counter()
    done = sum(1 for _ in work_off(units, engine, Silent(), Board(folder, Silent()), lambda _: False))
    assert done == len(units)
    return time.perf_counter() - began


# Rows ---------------------------------------------------------------------------------------------------


def stubs(options: argparse.Namespace) -> dict[str, object]:
    """Units that do nothing, on Ray on this machine."""
    from robustbench_sparse.backends.on_ray import OnRay

    units = made_up(options.units)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        engine = OnRay(entry="benchmarks.scaling_out:stub").opened(Path(folder) / "start.json", units)
        opened = time.perf_counter() - began
        try:
            first = worked(units[:1], engine, Path(folder))
            seconds = worked(units[1:], engine, Path(folder))
        finally:
            engine.close()
    return {
        "units": len(units),
        "seconds to start Ray and its first process": round(opened + first, 2),
        "seconds for all": round(seconds, 2),
        "ms a unit": round(1000 * seconds / len(units), 2),
        "MB of the driver": round(megabytes()),
    }


def overhead(options: argparse.Namespace) -> dict[str, object]:
    """Real units one after another in the one process of Ray's that fits, and how long it idles between them."""
    from robustbench_sparse import run_benchmark
    from robustbench_sparse.backends.on_ray import OnRay

    cores = len(os.sched_getaffinity(0))
    config = digits(
        seeds=list(range(12)),
        resources={"cpus": cores},
        evaluation={"limit": 50},
        name="scaling_out_overhead",
    )
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        table = run_benchmark(config, out=out, backend=OnRay(entry="benchmarks.scaling_out:timed"))
        found = (Path(out) / config["name"] / SECONDS).read_text().splitlines()
    spans = [json.loads(line) for line in found]
    beside = sorted(1000 * (b[0] - a[1]) for a, b in itertools.pairwise(spans))
    own = sorted(ended - begun for begun, ended in spans)
    return {
        "units": len(table),
        "seconds of a unit's own work, median": round(own[len(own) // 2], 3),
        "ms between two units, mean": round(sum(beside) / len(beside), 1),
        "ms between two units, most": round(beside[-1], 1),
        "seconds to the first unit's begin": round(spans[0][0] - began, 1),
        "seconds of the first unit more than the median": round(
            spans[0][1] - spans[0][0] - own[len(own) // 2], 1
        ),
        "MB of the command, torch with it": round(megabytes()),
    }


class Simulated:
    """An engine whose units pass in simulated time; the driver is the real one.

    Args:
        slots: units that run at once.
        seconds: of each unit.
        beside: what each slot takes besides.
    """

    def __init__(self, slots: int, seconds: Callable[[], float], beside: float) -> None:
        self.most, self.now = 2 * slots, 0.0
        self._free, self._seconds, self._beside = [0.0] * slots, seconds, beside
        self._ends: list[tuple[float, int, Unit]] = []
        self._count = 0

    def submit(self, units: Sequence[Unit], *, wait: bool) -> None:
        """Queue units: each takes the slot that is free first."""
        for unit in units:
            begins = max(self.now, heapq.heappop(self._free))
            ends = begins + self._beside + self._seconds()
            heapq.heappush(self._free, ends)
            self._count += 1
            heapq.heappush(self._ends, (ends, self._count, unit))

    def hear(self, seconds: float) -> list[tuple[Unit, Report]]:
        """The next unit that ends, and time with it."""
        from robustbench_sparse.backends.base import Report

        self.now, _, unit = heapq.heappop(self._ends)
        return [(unit, Report("done"))]

    def close(self) -> None:
        """Nothing runs."""


def model(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The driver's time for each unit and its memory, up to 100 000 units; simulated makespans beside the model's."""
    random.seed(SEED)
    for count, slots, seconds in ((1_000, 8, 60.0), (10_000, 64, 600.0), (100_000, 512, 600.0)):
        engine = Simulated(slots, lambda s=seconds: random.expovariate(1 / s), options.beside)  # type: ignore[misc]
        units = made_up(count)
        with tempfile.TemporaryDirectory() as folder:
            took = worked(units, engine, Path(folder))
        expected = makespan(count, slots, seconds, options.beside, took / count)
        yield {
            "units": count,
            "slots": slots,
            "ms of the driver for each": round(1000 * took / count, 3),
            "hours, simulated": round(engine.now / 3600, 3),
            "hours, model": round(expected / 3600, 3),
            "apart": f"{100 * (engine.now / expected - 1):+.1f} %",
            "MB of the driver": round(megabytes()),
        }


def makespan(count: int, slots: int, seconds: float, beside: float, driver: float) -> float:
    """Seconds that ``count`` units of exponential lengths take on so many slots.

    All slots are busy until the units run out, and what then still runs ends one after another: the last of ``slots``
    exponential remainders after their mean times the harmonic number, of which one mean is already in the first term.
    The driver is the limit where its own time for each unit is longer than the time between two ends.
    """
    harmonic = sum(1 / k for k in range(1, min(slots, count) + 1))
    return max(count * driver, count * (seconds + beside) / slots + seconds * (harmonic - 1))


def cluster(options: argparse.Namespace) -> dict[str, object]:
    """24 units on three nodes, two of which are killed while they work; the table beside that of one process."""
    from robustbench_sparse import run_benchmark
    from robustbench_sparse.backends.on_ray import OnRay
    from tests.helpers.clusters import Kills
    from tests.helpers.clusters import cluster as nodes_of

    evaluation = {"limit": 100, "certificate": options.certificate}
    runs = {**digits()["runs"], "lasso": {"defenses": ["lasso"]}}
    config = digits(seeds=list(range(8)), runs=runs, evaluation=evaluation)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as out:
        alone = run_benchmark(config, out=Path(out) / "local", jobs=1)
        folder = Path(out) / "ray" / config["name"]
        node = {"num_cpus": 1}
        # After so many trainings, and so long after: wherever the node then is.
        after = [(moments.randrange(2, 8), moments.random()), (moments.randrange(9, 16), moments.random())]

        def when(killed: int) -> bool:
            trained, pause = after[killed]
            if len(list(folder.glob("runs/*/training.json"))) < trained:
                return False
            time.sleep(pause)
            return True

        with nodes_of(node, node, node) as made, Kills(made, when, times=2) as kills:
            began = time.perf_counter()
            spread = run_benchmark(config, out=Path(out) / "ray", backend=OnRay(address=made.address))
            took = time.perf_counter() - began
        if options.keep:
            alone.to_csv(options.keep / "local.csv")
            spread.to_csv(options.keep / "ray.csv")
        return {
            "units": len(spread),
            "nodes killed": kills.killed,
            "after trainings, and seconds": after,
            "seconds": round(took, 1),
            "columns that differ": differences(alone, spread),
        }


def differences(one: Any, other: Any) -> list[str]:
    """The columns in which two tables are not the same text, but for those of times."""
    from robustbench_sparse.config.columns import SECONDS as TIMES

    shown = [c for c in {**dict.fromkeys(one), **dict.fromkeys(other)} if c not in TIMES]
    texts = [{c: t[c].to_csv(index=False) if c in t else None for c in shown} for t in (one, other)]
    return [c for c in shown if texts[0][c] != texts[1][c]]


def digits(**changes: Any) -> dict[str, Any]:
    """Small networks on the embedded digits."""
    config: dict[str, Any] = {
        "name": "scaling_out",
        "data": "digits",
        "validation": 100,
        "threads": 1,
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": {
            "fgsm": "fgsm",
            "pgd": {"name": "pgd", "steps": 5},
            "borrowed": {"name": "transfer", "source": "natural", "steps": 2},
        },
        "evaluation": {"limit": 100},
        "model": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 15, "batch_size": 32},
        "runs": {"natural": {}, "robust": {"defenses": [{"name": "pgd_at", "steps": 3}]}},
        **changes,
    }
    return config


ROWS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "stubs": stubs,
    "overhead": overhead,
    "model": model,
    "cluster": cluster,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure the rows asked for; each prints lines of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_out", description=__doc__)
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--units", type=int, default=2000, help="stub units on Ray")
    parser.add_argument(
        "--beside", type=float, default=0.1, help="seconds beside a unit's work, in the model"
    )
    parser.add_argument(
        "--certificate", default="off", help="of the units on three nodes: off, quick or full"
    )
    parser.add_argument("--keep", type=Path, help="folder for the two tables of the units on three nodes")
    parser.add_argument("--seed", type=int, default=SEED, help="of the moments at which nodes are killed")
    options = parser.parse_args(arguments)
    for name in options.only.split(","):
        found = ROWS[name](options)
        for line in [found] if isinstance(found, dict) else found:
            print(json.dumps({"row": name, **line}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
