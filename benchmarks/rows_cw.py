"""Carlini & Wagner in l2 with the same number of steps, down to candidates judged in fp32."""

from __future__ import annotations

import math

from torch import Tensor, nn

from attacks import CW
from attacks.base import Threat
from benchmarks import peers
from benchmarks.bench import Bench
from benchmarks.lines import Line, absent, faster, number
from benchmarks.timing import Side, interleave
from robustbench_sparse.engine.fast import attack_and_confirm

THREAT = Threat(norm="l2", eps=math.inf)


def cw(bench: Bench, budget: float) -> list[Line]:
    """One search of C&W-l2 on the naturally trained network; speed, success and size of the perturbations."""
    s = bench.sizes
    fast, model = bench.fast("natural"), bench.network("natural")
    x, y = bench.part(s.cw_images)

    def ours(number: int, steps: int) -> Tensor:
        attack = CW(steps=steps, search_steps=1, learning_rate=0.01)

        def one(x: Tensor, y: Tensor, at: int) -> Tensor:
            streams = bench.streams(number, "cw", at, len(y))
            return attack_and_confirm(attack, fast, x, y, THREAT, streams)[0]

        return bench.batches(x, y, one)

    sides = [Side[Tensor]("ours", lambda k: ours(k, s.cw_steps), lambda: ours(0, s.cw_steps))]
    for name in peers.CW:
        if peers.installed(name):
            sides.append(_peer(bench, name, model, x, y))
    measured = interleave(sides, repeats=s.repeats, budget=budget, device=bench.device)

    what, own = f"C&W-l2, {s.cw_steps} steps", _Found(bench, model, x, y, measured["ours"].results[0])
    lines = []
    for name in peers.CW:
        if name not in measured:
            lines.append(absent(what, name))
            continue
        other = _Found(bench, model, x, y, measured[name].results[0])
        settings = "Both with c = 1, step size 0.01 and one search, else with their own defaults."
        note = f"{settings} {_sizes(own, name, other)}"
        if name == "torchattacks":
            taken = _passes(model, name, x, y, s.cw_steps, s.batch)
            note += f" It took {taken} of its {s.cw_steps} steps."
            if taken < s.cw_steps:  # it stops a batch when its summed cost has risen
                ratio = measured[name].per().median / measured["ours"].per().median
                note += f" With all of them the ratio would be {number(ratio * s.cw_steps / taken)} x."
        lines.append(
            faster(
                what,
                "images/s",
                measured["ours"].rate(len(y)),
                name,
                measured[name].rate(len(y)),
                at_least=4 if name == "torchattacks" else None,
                agreement=f"{100 * (own.fooled == other.fooled).float().mean().item():.1f} % of {len(y)}",
                note=note,
            )
        )
    return lines


def _peer(bench: Bench, name: str, model: nn.Module, x: Tensor, y: Tensor) -> Side[Tensor]:
    s = bench.sizes
    attack, short = peers.CW[name](model, s.cw_steps), peers.CW[name](model, 2)
    return Side(
        name,
        lambda _: bench.batches(x, y, lambda x, y, _: attack(x, y)),
        lambda: short(x[: s.batch], y[: s.batch]),
    )


class _Found:
    """Which images one side's candidates fool in fp32, and how large the perturbations are."""

    def __init__(self, bench: Bench, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
        self.fooled = ~bench.verdict(model, x_adv, y)
        # A mistake on the clean image needs no perturbation.
        self.needed = self.fooled & bench.verdict(model, x, y)
        self.l2 = Threat(norm="l2").size(x_adv - x)


def _sizes(ours: _Found, name: str, theirs: _Found) -> str:
    """Success rates of both, and the perturbations' median size where both had to find one and did."""
    own_rate, other_rate = (100 * found.fooled.float().mean().item() for found in (ours, theirs))
    text = f"Fooled: ours {own_rate:.1f} %, {name} {other_rate:.1f} %."
    both = ours.needed & theirs.needed
    if not both.any():
        return text
    own, other = (found.l2[both].median().item() for found in (ours, theirs))
    return (
        f"{text} Median l2 on the {int(both.sum())} images both had to move: {own:.3f}, {name} {other:.3f}."
    )


def _passes(model: nn.Module, name: str, x: Tensor, y: Tensor, steps: int, batch: int) -> int:
    """Forward passes the peer makes over a batch: fewer than steps where it stops early."""
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        peers.CW[name](model, steps)(x[:batch], y[:batch])
    finally:
        hook.remove()
    return len(calls)
