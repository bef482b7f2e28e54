"""What sparse optimizers and RVSM add to a whole training step, and what a shrunk network saves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.base import Threat
from benchmarks.bench import Bench
from benchmarks.lines import Line, Target, dearer
from benchmarks.stepper import LR, Build, Stepper, minibatch, no_images, sgd
from benchmarks.timing import Side, Spread, interleave
from defenses import RVSM, AdaBreg, Defense, L1FilterPrune, LinBreg, ProxSGD, Step
from defenses.base import conv_weights, prunable
from robustbench_sparse.config.plugins import build
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.build import on_device
from robustbench_sparse.sparsity.counting import count_layers, count_macs, shares_of
from robustbench_sparse.sparsity.shrink.proof import same_logits
from robustbench_sparse.sparsity.shrink.surgery import shrink_network

LAM = 1e-4  # small enough that a network trained without it keeps most of its weights


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Convolutions and linear layers under l1, all other parameters without regulariser."""
    weights = list(prunable(model).values())
    chosen = {id(w) for w in weights}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": weights, "regulariser": "l1"}, {"params": rest, "regulariser": None}]


def _linbreg(model: nn.Module) -> torch.optim.Optimizer:
    return LinBreg(_groups(model), lr=LR, lam=LAM, momentum=0.9, weight_decay=5e-4)


def _proxsgd(model: nn.Module) -> torch.optim.Optimizer:
    return ProxSGD(_groups(model), lr=LR, lam=LAM, momentum=0.9, weight_decay=5e-4)


def _adabreg(model: nn.Module) -> torch.optim.Optimizer:
    return AdaBreg(_groups(model), lr=1e-3, lam=LAM)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def optimizers(bench: Bench, budget: float) -> list[Line]:
    """LinBreg and ProxSGD beside torch's SGD, AdaBreg beside its Adam: whole steps, in turn."""
    sides: dict[str, Build] = {
        "LinBreg": _linbreg, "ProxSGD": _proxsgd, "SGD": sgd, "AdaBreg": _adabreg, "Adam": _adam
    }  # fmt: skip
    steppers = {name: Stepper(bench, *minibatch(bench), build=build) for name, build in sides.items()}
    measured = _in_turn(bench, steppers, budget)
    pairs = (("LinBreg", "SGD", 1.15), ("ProxSGD", "SGD", None), ("AdaBreg", "Adam", 1.15))
    return [
        dearer(
            f"{ours} training step", "ms", measured[ours], f"torch {theirs}", measured[theirs], at_most=at_most,
            note=_note(bench, steppers[ours]),
        )
        for ours, theirs, at_most in pairs
    ]  # fmt: skip


def rvsm(bench: Bench, budget: float) -> list[Line]:
    """A step with RVSM, l0 and l1, beside one without."""
    weights = conv_weights(bench.network("natural")).values()
    median = torch.cat([w.detach().abs().flatten() for w in weights]).median().item()
    defenses: dict[str, Defense | None] = {
        "l0": RVSM(regulariser="l0", beta=0.1, lam=0.1 * median**2 / 2),  # its threshold is the median weight
        "l1": RVSM(regulariser="l1", beta=0.1, lam=0.1 * median),
        "plain": None,
    }
    steppers = {name: Stepper(bench, *minibatch(bench), defense) for name, defense in defenses.items()}
    measured = _in_turn(bench, steppers, budget)
    return [
        dearer(
            f"RVSM training step, {name}", "ms", measured[name], "plain step, ours as well", measured["plain"],
            at_most=1.05, note=_note(bench, steppers[name]),
        )
        for name in ("l0", "l1")
    ]  # fmt: skip


def shrunk(bench: Bench, budget: float) -> list[Line]:
    """Networks with half of the prunable filters dead, before and after the dead are cut out."""
    lines = []
    for name, spec in bench.sizes.shrunk.items():
        entry = dict(spec)
        model = build(MODELS, entry, "model", ModelSpec).build(3, 32, 10).eval()
        x = bench.part(bench.sizes.train_batch)[0]
        prune = L1FilterPrune(sparsity=50.0)
        prune.begin(Step(model, None, Threat(), torch.Generator(), no_images))
        masked = on_device(prune.deploy(model), bench.device).eval()
        small = on_device(shrink_network(masked, x[:2]).model, bench.device).eval()
        apart, size = same_logits(masked, small, x)
        if apart > 1e-4 * max(1.0, size):
            raise RuntimeError(f"{name}: the shrunk network's logits are {apart:.2g} off")
        x = x.contiguous(memory_format=torch.channels_last)
        sides = [_forward("after", small, x), _forward("before", masked, x)]
        measured = interleave(
            sides,
            repeats=2 * bench.sizes.short_repeats,
            budget=budget / len(bench.sizes.shrunk),
            device=bench.device,
        )
        after, before = measured["after"].per(1e-3), measured["before"].per(1e-3)
        macs = count_macs(small, 3, 32) / count_macs(masked, 3, 32)
        got = (1 - after.median / before.median) / (1 - macs)
        lines.append(
            Line(
                f"{name} without its dead channels, batch of {len(x)}", "ms", after, "with them, zero", before,
                before.median / after.median, Target(">=", 0.7, "of the MACs' fall"), got,
                agreement=f"logits differ by {apart:.1g} at most",
                note=f"float32, eager, channels-last; multiply-accumulates fall by {100 * (1 - macs):.0f} %, "
                f"time by {100 * (1 - after.median / before.median):.0f} %.",
            )
        )  # fmt: skip
    return lines


def _forward(name: str, model: nn.Module, x: Tensor) -> Side[None]:
    @torch.no_grad()
    def work(_: int) -> None:
        model(x)

    return Side(name, work, lambda: work(0))


def _in_turn(bench: Bench, steppers: dict[str, Stepper], budget: float) -> dict[str, Spread]:
    """Milliseconds of each stepper's step."""
    sides = [_side(name, stepper) for name, stepper in steppers.items()]
    measured = interleave(sides, repeats=2 * bench.sizes.short_repeats, budget=budget, device=bench.device)
    return {name: each.per(1e-3) for name, each in measured.items()}


def _side(name: str, stepper: Stepper) -> Side[None]:
    return Side(name, lambda _: stepper.step(), stepper.step)


def _note(bench: Bench, stepper: Stepper) -> str:
    engine = "compiled" if bench.sizes.compile else "eager"
    zeros = shares_of(count_layers(stepper.deployed()))["weight_sparsity"]
    return f"Batch of {bench.sizes.train_batch}, bf16, {engine}, channels-last; {zeros:.0f} % of the weights zero."
