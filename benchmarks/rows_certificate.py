"""What a quick certificate takes, for a network and for a random ensemble of two."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.bench import SEED, SGD, Bench
from benchmarks.lines import Line, Target
from benchmarks.timing import Spread, clock
from benchmarks.training import THREAT, plan, train
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.data import PreparedData
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.verdict import judge_network

ONE_S, TWO_S = 60.0, 300.0  # what a certificate may take, on two cores
DEAREST = 5  # checks that are named


def certificate(bench: Bench, budget: float) -> list[Line]:
    """One certificate of each, judged by few images; what the row's own attacks take is not counted."""
    quick = BUDGETS["quick"]
    return [
        _line(bench, "the PGD-AT network", bench.network("pgd_at"), "standard", quick.images, ONE_S),
        _line(bench, "an ensemble of two, noise 0.1", _two(bench), "quick", quick.random_images, TWO_S),
    ]


def _two(bench: Bench) -> nn.Module:
    """Two members trained against PGD for an epoch: what a random network costs hangs little on what it withstands."""
    s = bench.sizes
    run = plan(
        s.model,
        {"epochs": 1, "batch_size": 64, "optimizer": SGD, "precision": "bf16"},
        [{"name": "pgd_at", "steps": s.at_steps}, {"name": "enresnet", "members": 2, "noise": 0.1}],
    )
    return train(run, bench.train_part(s.train_images // 8), SEED)


def _line(bench: Bench, what: str, model: nn.Module, suite: str, images: int, most: float) -> Line:
    data = PreparedData(
        bench.dataset,
        validation=0,
        device=bench.device,
        train_limit=bench.sizes.accuracy_images,
        test_limit=images,
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = _plan(suite, bench.sizes.whole_runs)
        place = RunFolder.foreign(
            Path(folder) / names.RUNS / "row",
            asked,
            bench.dataset,
            {"run": "row", "seed": SEED, "model": "bench"},
        )
        place.prepare(bench.device)
        began = clock(bench.device)
        with torch.random.fork_rng([]):
            judge_network(model, place, asked, data, Silent(), identity="bench", title=what)
        whole = clock(bench.device) - began
        made = read_json(place.path / names.CERTIFICATE)
    dearest = sorted(made["checks"], key=lambda c: -float(c["seconds"]))[:DEAREST]
    listed = ", ".join(f"{c['id']} {c['seconds']:.1f}" for c in dearest)
    seconds = float(made["seconds"])
    return Line(
        f"Quick certificate of {what}",
        "s",
        Spread.of([seconds]),
        target=Target("<=", most, "s"),
        got=seconds,
        agreement=f"{made['verdict']}; flags {' '.join(made['flags']) or 'none'}",
        note=f"{made['n']} images, suite {suite}; {whole:.0f} s with the attacks; dearest: {listed}.",
    )


def _plan(suite: str, whole: bool) -> Plan:
    """What a row is judged by; a trial of the script has a second for its checks."""
    evaluation = {"certificate": "quick", **({} if whole else {"certificate_seconds": 1})}
    return resolve(
        {
            "name": "bench",
            "data": "digits",  # not read
            "threat": {"norm": THREAT.norm, "eps": THREAT.eps},
            "suite": suite,
            "evaluation": evaluation,
            "model": "mlp",
            "train": {"epochs": 1, "selection": "last"},
            "runs": {"row": {}},
        }
    )
