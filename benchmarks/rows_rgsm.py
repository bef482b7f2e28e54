"""What channel pruning while training adds to a step, and what its update costs channel by channel."""

from __future__ import annotations

import copy

import torch

from attacks.base import Threat
from benchmarks import peers
from benchmarks.bench import Bench
from benchmarks.lines import Line, dearer, faster
from benchmarks.stepper import LR, Stepper, minibatch, no_images
from benchmarks.timing import Side, interleave
from defenses import RGSM
from defenses.base import Step, conv_weights
from defenses.regularisers import group_norms
from robustbench_sparse.models.build import on_device

BETA = 1.0


def step(bench: Bench, budget: float) -> list[Line]:
    """One training step with RGSM beside one without, in turn, step by step."""
    s = bench.sizes
    x, y = minibatch(bench)
    rgsm = _rgsm(bench)
    plain, pruning = Stepper(bench, x, y), Stepper(bench, x, y, rgsm)
    sides: list[Side[None]] = [
        Side("ours", lambda _: pruning.step(), pruning.step),
        Side("plain", lambda _: plain.step(), plain.step),
    ]
    measured = interleave(sides, repeats=2 * s.short_repeats, budget=budget, device=bench.device)
    deployed = conv_weights(pruning.deployed()).values()
    sizes = torch.cat([w.detach().abs().sum((0, 2, 3)) for w in deployed])
    engine = "compiled" if s.compile else "eager"
    zeros = f"{int((sizes == 0).sum())} of {len(sizes)} channels zero"
    note = f"Batch of {len(y)}, bf16, {engine}, channels-last; group l0, beta {BETA:g}, lambda {rgsm.lam:.3g}: {zeros}."
    ours, theirs = (measured[name].per(1e-3) for name in ("ours", "plain"))
    return [
        dearer("RGSM training step", "ms", ours, "plain step, ours as well", theirs, at_most=1.05, note=note)
    ]


def update(bench: Bench, budget: float) -> list[Line]:
    """RGSM's own update (coupling and proximal map) beside the papers' loop over channels."""
    defense = _rgsm(bench)
    own, other = (on_device(copy.deepcopy(bench.network("natural")), bench.device) for _ in range(2))
    s = Step(own, None, Threat(), torch.Generator(), no_images, lr=LR)
    defense.begin(s)
    weights = [w.detach() for w in conv_weights(other).values()]
    u = [w.clone() for w in weights]

    @torch.no_grad()
    def ours(_: int) -> None:
        defense.before_step(s)
        defense.after_step(s)

    def by_channel(_: int) -> None:
        peers.rgsm_update_by_channel(weights, u, lr=LR, beta=BETA, lam=defense.lam)

    sides: list[Side[None]] = [
        Side("ours", ours, lambda: ours(0)),
        Side("loop", by_channel, lambda: by_channel(0)),
    ]
    measured = interleave(sides, repeats=bench.sizes.short_repeats, budget=budget, device=bench.device)
    ours_ms, loop_ms = (measured[name].per(1e-3) for name in ("ours", "loop"))
    channels = sum(w.shape[1] for w in weights)
    pairs = zip(conv_weights(defense.deploy(own)).values(), u, strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    note = f"{len(weights)} layers, {channels} channels, without the rest of the step."
    agreement = f"u differs by {apart:.1g} at most, after {len(measured['ours'].seconds) + 1} updates"
    what = "RGSM's update alone"
    return [faster(what, "ms", ours_ms, "loop over channels", loop_ms, agreement=agreement, note=note)]


def _rgsm(bench: Bench) -> RGSM:
    """Group l0 whose threshold lies at the median channel norm, so that half of the channels are zeroed."""
    weights = conv_weights(bench.network("natural")).values()
    norms = torch.cat([group_norms(w.detach(), "channel").flatten() for w in weights])
    return RGSM(regulariser="group_l0", beta=BETA, lam=BETA * norms.median().item() ** 2 / 2)
