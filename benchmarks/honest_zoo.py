"""``python -m benchmarks.honest_zoo``: does the certificate leave honest networks alone?

Every network of ``tests/helpers/honest_zoo.py`` and every idiom of ``tests/helpers/honest_idioms.py`` is trained in
this process, judged as a benchmark judges it, and examined. One JSON file a network and seed; what is there is not done
again.
A table at the end names every check that failed or broke off. 0, or 1 where there is any.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.base import Threat
from benchmarks.images import find_root
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.plugins import build
from robustbench_sparse.config.suites import SUITES, attacks_of
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.judging.relatives import Relative, Relatives
from tests.helpers.honest_idioms import IDIOMS
from tests.helpers.honest_zoo import HONEST, Honest, Task, idiom

EPS = {"digits": 0.15, "mnist": 0.2}
# Without a defense, and so their own undefended twins.
UNDEFENDED = {"natural", "confident", "label_smoothing", "third_party", *IDIOMS}
TRAINED_ON = 4000  # images of MNIST


def networks(data: str) -> dict[str, Honest]:
    """All networks by name; the idioms are written for images of 8 x 8 pixels."""
    twin: Honest = functools.cache(HONEST["natural"])  # of all that are defended
    zoo = {**HONEST, "natural": twin}
    return {**zoo, **{name: idiom(make) for name, make in IDIOMS.items()}} if data == "digits" else zoo


def judged(
    net: nn.Module, twin: nn.Module | None, data: PreparedData, eps: float, suite: str, level: Any
) -> Mapping[str, Any]:
    """What the certificate says of a network, under a suite's attacks; without a twin it is its own."""
    threat = Threat(eps=eps)
    plans = [AttackPlan(k, SUITES[suite][k]["name"], a, threat) for k, a in attacks_of(suite).items()]
    kin = Relatives(undefended=True)
    if twin is not None:
        kin = Relatives(twin=Relative("natural", lambda: twin, "natural"))
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(
            net, data, Path(scratch), JudgeSettings(seed=1, batch_size=128, draws=10), "w", Silent()
        )
        judge.everything(plans)
        Examination(judge, plans, level, threat, kin).make()
        made: Mapping[str, Any] = read_json(Path(scratch) / "certificate" / "certificate.json")
        return made


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for and not there yet."""
    options = _options(arguments)
    torch.set_num_threads(1)
    root = None if options.data == "digits" else find_root(options.data_root)
    base: Any = object
    whole = load_dataset(build(DATASETS, {"name": options.data}, "data", base), root)
    data = PreparedData(whole, validation=0, test_limit=options.images)
    known = networks(options.data)
    for seed in options.seeds:
        task = _task(data, options, seed)
        for name in options.only or known:
            path = options.out / f"{name}-s{seed}.json"
            if not path.exists():
                write_json(path, _row(name, known, task, data, options))
    return _report(options)


def _row(
    name: str, known: Mapping[str, Honest], task: Task, data: PreparedData, options: Any
) -> dict[str, Any]:
    began = time.perf_counter()
    net = known[name](task)
    trained = time.perf_counter()
    twin = None if name in UNDEFENDED else known["natural"](task)
    made = judged(net, twin, data, task.eps, options.suite, options.level)
    checks = {c["id"]: c for c in made["checks"]}
    row: dict[str, Any] = {
        "network": name,
        "seed": task.seed,
        "verdict": made["verdict"],
        "alarms": {k: _alarm(c) for k, c in checks.items() if c["status"] in ("failed", "error")},
        "number": checks["M13"]["measured"],
        "train_seconds": round(trained - began, 1),
        "certificate_seconds": made["seconds"],
        "dearest": {k: c["seconds"] for k, c in sorted(checks.items(), key=lambda i: -i[1]["seconds"])[:4]},
    }
    print(f"{name} seed {task.seed}: {row['verdict']} {', '.join(row['alarms'])} {row['number']}", flush=True)
    return row


def _alarm(check: Mapping[str, Any]) -> dict[str, Any]:
    return {k: check.get(k, "") for k in ("status", "done", "measured", "why", "traceback")}


def _task(data: PreparedData, options: Any, seed: int) -> Task:
    count = min(data.count("train"), TRAINED_ON)
    x, y = data.gather("train", torch.arange(count))
    return Task(x, y, options.eps or EPS[options.data], seed, options.epochs)


def _report(options: Any) -> int:
    rows = [read_json(path) for path in sorted(options.out.glob("*-s*.json"))]
    accused = [r for r in rows if r["alarms"]]
    print(f"{len(rows)} rows, {len({r['network'] for r in rows})} networks, {len(accused)} with an alarm")
    for r in accused:
        for name, alarm in r["alarms"].items():
            print(
                f"  {r['network']} seed {r['seed']}: {name} {alarm['status']}: {alarm['done']} {alarm['measured']}"
            )
    return int(bool(accused))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.honest_zoo", description=__doc__)
    parser.add_argument("only", nargs="*", help="names of networks; all if none is given")
    parser.add_argument("--data", choices=sorted(EPS), default="digits")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("results/honest_zoo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=128, help="test images judged")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--eps", type=float, help="radius in l_inf; 0.15 on digits, 0.2 on MNIST")
    parser.add_argument("--suite", default="standard", help="whose attacks the row rests on")
    parser.add_argument("--level", choices=sorted(BUDGETS), default="quick")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
