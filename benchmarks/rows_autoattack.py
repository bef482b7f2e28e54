"""AutoAttack beside torchattacks' on the same adversarially trained network: images per second, and who breaks what."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks import AutoAttack
from benchmarks import peers
from benchmarks.bench import Bench
from benchmarks.lines import Line, Target, absent, faster
from benchmarks.timing import Side, interleave
from benchmarks.training import THREAT
from robustbench_sparse.engine.fast import attack_and_confirm

# torchattacks 3.5.1 gives APGD and FAB 10 steps in its ensemble, where the paper has 100; equal work is compared first.
PEERS_STEPS = 10
LISTED = 12
SLACK = 0.2  # points of robust accuracy that ours may lie above theirs


def autoattack(bench: Bench, budget: float) -> list[Line]:
    """One round of each: minutes of the peer's time leave no room for medians."""
    s = bench.sizes
    if not peers.installed("torchattacks"):
        return [absent("AutoAttack", "torchattacks")]
    fast, model = bench.fast("pgd_at"), bench.network("pgd_at")
    theirs = peers.torchattacks_autoattack(model, eps=THREAT.eps, classes=len(bench.dataset.classes))
    x, y = bench.part(s.auto_images)
    half = len(y) // 2
    parts = [(0, slice(0, half)), (half, slice(half, len(y)))]

    def ours(steps: int, first: int, part: slice) -> Tensor:
        verdicts = []
        attack = AutoAttack(steps=steps, queries=s.auto_queries)
        for i in range(0, len(y[part]), s.verdict_batch):
            some = slice(part.start + i, min(part.start + i + s.verdict_batch, part.stop))
            streams = bench.streams(0, "autoattack", first + i, len(y[some]))
            verdicts.append(attack_and_confirm(attack, fast, x[some], y[some], THREAT, streams)[1])
        return torch.cat(verdicts)

    def peer(part: slice) -> Tensor:
        torch.manual_seed(part.start)
        found = bench.batches(x[part], y[part], lambda x, y, _: theirs(x, y))
        return bench.verdict(model, found, y[part])

    short = AutoAttack(steps=2, queries=4)
    warm = bench.streams(0, "warm", 0, s.batch)
    sides: list[Side[Tensor]] = [
        Side(
            "ours",
            lambda _: ours(PEERS_STEPS, *parts[0]),
            lambda: attack_and_confirm(short, fast, x[: s.batch], y[: s.batch], THREAT, warm),
        ),
        Side(
            "torchattacks",
            lambda _: peer(parts[0][1]),
            lambda: bench.verdict(model, x[: s.batch], y[: s.batch]),
        ),
    ]
    measured = interleave(sides, repeats=1, budget=budget, device=bench.device)
    own, other = measured["ours"], measured["torchattacks"]
    equal = torch.cat([own.results[0], ours(PEERS_STEPS, *parts[1])])
    full = torch.cat([ours(100, *part) for part in parts])
    theirs_right = torch.cat([other.results[0], peer(parts[1][1])])
    what = f"AutoAttack, eps 8/255, PGD-AT network, {len(y)} images"
    speed = faster(
        f"AutoAttack with the peer's {PEERS_STEPS} steps",
        "images/s",
        own.rate(half),
        "torchattacks",
        other.rate(half),
        at_least=3,
        note=f"the first {half} images, one round each; Square with {s.auto_queries} queries",
    )
    return [
        speed,
        _agreement(f"{what}, {PEERS_STEPS} steps", equal, theirs_right),
        _agreement(f"{what}, 100 steps", full, theirs_right),
    ]


def _agreement(what: str, ours: Tensor, theirs: Tensor) -> Line:
    """Robust accuracies, and every image on which the verdicts differ."""
    own, other = (100 * right.float().mean().item() for right in (ours, theirs))
    only = {
        "only ours broke": (~ours & theirs).nonzero().flatten().tolist(),
        "only theirs broke": (ours & ~theirs).nonzero().flatten().tolist(),
    }
    lists = [
        " ".join(
            [name, str(len(at)), *(f"#{i}" for i in at[:LISTED]), *(["..."] if len(at) > LISTED else [])]
        )
        for name, at in only.items()
    ]
    return Line(
        what,
        unit="points more than torchattacks'",
        peer="torchattacks",
        target=Target("<=", SLACK, "points"),
        got=round(own - other, 4),  # 0.2 is a difference of whole images, not of the last bits
        agreement=f"robust {own:.1f} % / {other:.1f} %",
        note="; ".join(lists),
    )
