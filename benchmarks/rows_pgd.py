"""PGD with no early exit, and PGD to a verdict, beside the libraries and a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks import PGD
from benchmarks import peers
from benchmarks.bench import Bench, Which
from benchmarks.lines import Line, absent, faster
from benchmarks.timing import Side, interleave
from benchmarks.training import THREAT
from robustbench_sparse.engine.fast import attack_and_confirm

ALPHA = 2 / 255


def every_step(bench: Bench, budget: float) -> list[Line]:
    """Every image run to the last step, on the adversarially trained network.

    How long that takes does not depend on the weights; on this network the verdicts say something.
    """
    s = bench.sizes
    attack, short = (PGD(steps=n, step_size=ALPHA, keep="last") for n in (s.attack_steps, 2))
    fast, model = bench.fast("pgd_at"), bench.network("pgd_at")

    def ours(x: Tensor, y: Tensor, number: int, attack: PGD = attack) -> Tensor:
        def one(x: Tensor, y: Tensor, at: int) -> Tensor:
            return attack(fast, x, y, THREAT, bench.streams(number, "pgd", at, len(y)))

        return bench.batches(x, y, one)

    x, y = bench.part(s.attack_images)
    sides = [Side[Tensor]("ours", lambda k: ours(x, y, k), lambda: ours(x, y, 0, short))]
    for name, make in peers.PGD.items():
        if peers.installed(name) or name == "plain loop":
            sides.append(_peer(bench, name, make, model, x, y))
    measured = interleave(sides, repeats=s.repeats, budget=budget, device=bench.device)
    right = {k: [bench.verdict(model, a, y) for a in m.results] for k, m in measured.items()}
    what = f"PGD-{s.attack_steps}, no early exit"
    lines = []
    for name in peers.PGD:
        if name not in measured:
            lines.append(absent(what, name))
            continue
        again = ""
        if name == "torchattacks" and len(right[name]) > 1:
            share = _same(right[name][0], right[name][1])
            again = f"torchattacks agrees with itself, from another random start, on {share}. "
        lines.append(
            faster(
                what,
                "images/s",
                measured["ours"].rate(len(y)),
                name,
                measured[name].rate(len(y)),
                at_least=3.5 if name == "torchattacks" else None,
                agreement=_agreement(right["ours"][0], right[name][0]),
                note=f"{again}PGD-AT network, {len(y)} images." if again else "",
            )
        )
    return lines


def to_a_verdict_natural(bench: Bench, budget: float) -> list[Line]:
    """Until the verdict is known, on the naturally trained network."""
    return _to_a_verdict(bench, budget, "natural", 15)


def to_a_verdict_robust(bench: Bench, budget: float) -> list[Line]:
    """Until the verdict is known, on the adversarially trained network."""
    return _to_a_verdict(bench, budget, "pgd_at", 4)


def _to_a_verdict(bench: Bench, budget: float, which: Which, at_least: float) -> list[Line]:
    s = bench.sizes
    attack = PGD(steps=s.attack_steps, step_size=ALPHA)
    fast, model = bench.fast(which), bench.network(which)
    x, y = bench.part(s.verdict_images)
    what = f"PGD-{s.attack_steps} to a verdict, {which} network"
    if not peers.installed("torchattacks"):
        return [absent(what, "torchattacks")]

    def ours(number: int) -> Tensor:
        verdicts = []
        for i in range(0, len(y), s.verdict_batch):
            part = slice(i, i + s.verdict_batch)
            streams = bench.streams(number, "pgd", i, len(y[part]))
            verdicts.append(attack_and_confirm(attack, fast, x[part], y[part], THREAT, streams)[1])
        return torch.cat(verdicts)

    peer = _peer(bench, "torchattacks", peers.torchattacks_pgd, model, x, y)
    sides: list[Side[Tensor]] = [
        # A whole round: images that leave the batch bring all the batch sizes with them.
        Side("ours", ours, lambda: ours(0)),
        Side(peer.name, lambda k: bench.verdict(model, peer.work(k), y), peer.warm_up),
    ]
    measured = interleave(sides, repeats=s.repeats, budget=budget, device=bench.device)
    own, other = measured["ours"], measured["torchattacks"]
    return [
        faster(
            what,
            "images/s",
            own.rate(len(y)),
            "torchattacks + fp32 verdict",
            other.rate(len(y)),
            at_least=at_least,
            agreement=_agreement(own.results[0], other.results[0]),
            note="Ours stops an image at its first success, confirmed in fp32. "
            f"{len(y)} images, ours {s.verdict_batch} at once, the peer {s.batch}.",
        )
    ]


def _peer(
    bench: Bench, name: str, make: Callable[..., peers.Peer], model: nn.Module, x: Tensor, y: Tensor
) -> Side[Tensor]:
    s = bench.sizes
    attack = make(model, eps=THREAT.eps, alpha=ALPHA, steps=s.attack_steps)
    short = make(model, eps=THREAT.eps, alpha=ALPHA, steps=2)

    def work(number: int) -> Tensor:
        torch.manual_seed(number)
        return bench.batches(x, y, lambda x, y, _: attack(x, y))

    return Side(name, work, lambda: short(x[: s.batch], y[: s.batch]))


def _same(a: Tensor, b: Tensor) -> str:
    return f"{100 * (a == b).float().mean().item():.1f} %"


def _agreement(ours: Tensor, theirs: Tensor) -> str:
    own, other = (100 * right.float().mean().item() for right in (ours, theirs))
    return f"{_same(ours, theirs)} of {len(ours)}; robust {own:.1f} % / {other:.1f} %"
