"""Whether the fast path reaches the verdicts of the fp32 path, and never counts a success that fp32 denies."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks import PGD
from benchmarks.bench import Bench, Which
from benchmarks.lines import Line, Target
from benchmarks.timing import Spread, clock
from benchmarks.training import THREAT
from robustbench_sparse.engine.fast import attack_and_confirm


def agreement(bench: Bench, budget: float) -> list[Line]:
    """Fast path (bf16, compiled, confirmed) and fp32 eager path: same attack, same random streams."""
    return [line for which in ("natural", "pgd_at") for line in _agreement(bench, which)]


def _agreement(bench: Bench, which: Which) -> list[Line]:
    s = bench.sizes
    attack = PGD(steps=s.attack_steps, step_size=2 / 255)
    fast, model = bench.fast(which), bench.network(which)
    x, y = bench.part(s.agree_images)
    counted: list[Tensor] = []

    def ours(x: Tensor, y: Tensor, at: int) -> Tensor:
        x_adv, right = attack_and_confirm(attack, fast, x, y, THREAT, bench.streams(0, "agree", at, len(y)))
        counted.append(right)
        return x_adv

    def eager(x: Tensor, y: Tensor, at: int) -> Tensor:
        return attack(model, x, y, THREAT, bench.streams(0, "agree", at, len(y)))

    began = clock(bench.device)
    found = bench.batches(x, y, ours)
    between = clock(bench.device)
    expected = bench.verdict(model, bench.batches(x, y, eager), y)
    ended = clock(bench.device)

    right = torch.cat(counted).to(expected.device)
    denied = int((~right & bench.verdict(model, found, y)).sum())
    more, fewer = int((expected & ~right).sum()), int((~expected & right).sum())
    share = 100 * (more + fewer) / len(y)
    what = f"PGD-{s.attack_steps} verdicts, {which} network"
    robust = f"robust {_percent(right)} / {_percent(expected)}"
    times = [Spread.of([len(y) / t]) for t in (between - began, ended - between)]
    return [
        Line(
            f"{what}: differing",
            "images/s",
            times[0],
            "the same attack, fp32 eager",
            times[1],
            times[0].median / times[1].median,
            Target("<", 0.3, "% of images differ"),
            share,
            f"{100 - share:.1f} % of {len(y)}; {robust}",
            f"Fooled by the fast path alone {more}, by the fp32 path alone {fewer} of {len(y)} images; "
            "timed once, the fast path first, within one process.",
        ),
        Line(
            f"{what}: counted as fooled, right in fp32",
            target=Target("<=", 0, "images"),
            got=denied,
            agreement=f"{denied} of {int((~right).sum())} counted",
        ),
    ]


def _percent(right: Tensor) -> str:
    return f"{100 * right.float().mean().item():.1f} %"
