"""What channel pruning while training adds to a step, and what its update costs channel by channel."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from benchmarks import peers
from benchmarks.bench import Bench
from benchmarks.lines import Line, dearer, faster
from benchmarks.timing import Side, interleave
from defenses import RGSM
from defenses.base import Defense, Step, conv_weights
from defenses.regularisers import group_norms
from robustbench_sparse.fast import FastTraining
from robustbench_sparse.train import on_device

LR, BETA = 0.01, 1.0


class Stepper:
    """A training step as our trainer takes it: bf16, compiled, channels-last, the defense's hooks around it."""

    def __init__(self, bench: Bench, defense: Defense | None, x: Tensor, y: Tensor) -> None:
        self.defense = defense
        self.model = on_device(copy.deepcopy(bench.network("natural")), bench.device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        self.forward = FastTraining(self.model, precision="bf16", compile=bench.sizes.compile)
        self.forward.warm_up(x)
        self.s = Step(self.model, self.optimizer, Threat(), torch.Generator(), _no_images, x=x, y=y, lr=LR)
        if defense is not None:
            defense.begin(self.s)

    def step(self) -> None:
        """One step on the batch."""
        s = self.s
        loss = F.cross_entropy(self.forward(s.x), s.y)
        if self.defense is not None:
            penalty = self.defense.penalty(s)
            loss = loss if penalty is None else loss + penalty
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.defense is not None:
            self.defense.before_step(s)
        self.optimizer.step()
        if self.defense is not None:
            with torch.no_grad():
                self.defense.after_step(s)

    def deployed(self) -> nn.Module:
        """The network as it would be judged now."""
        return self.model if self.defense is None else self.defense.deploy(self.model)


def step(bench: Bench, budget: float) -> list[Line]:
    """One training step with RGSM beside one without, in turn, step by step."""
    s = bench.sizes
    data = bench.train_part(s.train_batch)
    x, y = data.gather("train", torch.arange(data.count("train")))
    x = x.contiguous(memory_format=torch.channels_last)
    rgsm = _rgsm(bench)
    plain, pruning = Stepper(bench, None, x, y), Stepper(bench, rgsm, x, y)
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
    s = Step(own, None, Threat(), torch.Generator(), _no_images, lr=LR)
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


def _no_images(split: str, count: int, generator: torch.Generator) -> Tensor:
    raise AssertionError("RGSM looks at no images")
