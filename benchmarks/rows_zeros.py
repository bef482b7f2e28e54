"""Zeros that pay: attacking a network with dead channels beside its dense parent, and beside itself run as dense."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Threat
from benchmarks.bench import SEED, SGD, Bench
from benchmarks.lines import Line, Target, faster
from benchmarks.stepper import no_images
from benchmarks.timing import Side, interleave
from benchmarks.training import THREAT, plan, train
from defenses import L1FilterPrune, Step
from robustbench_sparse.config.plugins import build
from robustbench_sparse.engine.fast import FastNetwork, attack_and_confirm
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.build import on_device
from robustbench_sparse.sparsity.shrink.lean import Lean, lean

DEAD = (50, 75, 90)  # percent of every layer's channels
TRAINED = 75  # the one whose verdicts are compared: it is trained, the others have their first weights
AT_LEAST = 2.0
PARENT, AS_DENSE = "its dense parent", "the same network, run as dense"


def zeros(bench: Bench, budget: float) -> list[Line]:
    """PGD with every image run to the last step, in the same precision on all sides."""
    s = bench.sizes
    networks = {f"{dead} % of all channels dead": _with_dead(bench, dead) for dead in DEAD}
    networks[f"{TRAINED} % of the channels within blocks dead"] = _filters_dead(bench, TRAINED)
    found = {name: lean(model, bench.part(64)[0], "shrunk") for name, model in networks.items()}
    sides: dict[str, nn.Module] = {PARENT: bench.fast("pgd_at")}
    for name, small in found.items():
        if small.model is None:
            raise RuntimeError(f"{name}: {small.why}")
        sides[name] = _fast(bench, networks[name], small)
    trained = f"{TRAINED} % of all channels dead"
    sides[AS_DENSE] = _fast(bench, networks[trained], Lean())
    measured = interleave(
        [_side(bench, name, network) for name, network in sides.items()],
        repeats=s.repeats,
        budget=budget,
        device=bench.device,
    )
    rates = {name: each.rate(len(bench.part(s.attack_images)[1])) for name, each in measured.items()}
    lines = []
    for name, small in found.items():
        what = f"PGD-{s.attack_steps}, {name}, shrunk"
        engine = "compiled" if s.compile else "eager"
        lines.append(
            faster(
                what,
                "images/s",
                rates[name],
                PARENT,
                rates[PARENT],
                at_least=AT_LEAST if name == trained else None,
                note=f"bf16, {engine}, on both sides; {100 * small.macs_left:.1f} % of the MACs are left.",
            )
        )
    what = f"PGD-{s.attack_steps}, {trained}, shrunk"
    lines.append(faster(what, "images/s", rates[trained], AS_DENSE, rates[AS_DENSE]))
    return [*lines, *_agreement(bench, networks[trained], sides[AS_DENSE], sides[trained])]


def _agreement(bench: Bench, model: nn.Module, dense: nn.Module, shrunk: nn.Module) -> list[Line]:
    """The same attack with the same streams on both stand-ins; verdicts are the network's."""
    s = bench.sizes
    attack = PGD(steps=s.attack_steps, step_size=2 / 255)
    x, y = bench.part(s.agree_images)
    verdicts: dict[str, list[Tensor]] = {"dense": [], "shrunk": []}

    def on(side: str, network: nn.Module) -> Tensor:
        def one(x: Tensor, y: Tensor, at: int) -> Tensor:
            streams = bench.streams(0, "zeros", at, len(y))
            x_adv, right = attack_and_confirm(attack, network, x, y, THREAT, streams)
            verdicts[side].append(right)
            return x_adv

        return bench.batches(x, y, one)

    on("dense", dense)
    found = on("shrunk", shrunk)
    expected, right = torch.cat(verdicts["dense"]), torch.cat(verdicts["shrunk"])
    share = 100 * (expected != right).double().mean().item()
    denied = int((~right & bench.verdict(model, found, y)).sum())
    robust = " / ".join(f"{100 * v.double().mean().item():.1f} %" for v in (right, expected))
    clean = 100 * bench.verdict(model, x, y).double().mean().item()
    what = f"PGD-{s.attack_steps} verdicts, {TRAINED} % of all channels dead"
    return [
        Line(
            f"{what}: differing between the engines",
            target=Target("<", 0.3, "% of images differ"),
            got=share,
            agreement=f"{100 - share:.1f} % of {len(y)}; robust {robust}",
            note=f"Clean {clean:.1f} %; adversarially trained on {s.at_images} images like the parent.",
        ),
        Line(
            f"{what}: counted as fooled, right in fp32",
            target=Target("<=", 0, "images"),
            got=denied,
            agreement=f"{denied} of {int((~right).sum())} counted",
        ),
    ]


def with_dead_channels(small: nn.Module, like: nn.Module) -> nn.Module:
    """A network as wide as another one that computes what a narrower one does: all further channels are zero.

    Args:
        small: the narrow network.
        like: a network of the same layers, each at least as wide; it stays as it is.

    Returns:
        A copy of ``like`` in eval mode, whose tensors hold those of ``small`` in their first entries, and else zeros.
    """
    wide = copy.deepcopy(like).eval()
    own = small.state_dict()
    with torch.no_grad():
        for name, tensor in wide.state_dict().items():
            tensor.zero_()
            tensor[tuple(slice(0, length) for length in own[name].shape)] = own[name]
    return wide


def _with_dead(bench: Bench, dead: int) -> nn.Module:
    """A network of the benchmark's shape in which so many percent of every layer's channels are dead."""
    s, like = bench.sizes, bench.network("pgd_at")
    spec = build(MODELS, dict(s.model), "model", ModelSpec)
    widths = [max(1, round(width * (100 - dead) / 100)) for width in spec.widths]  # type: ignore[attr-defined]
    model = {**s.model, "widths": widths}
    if dead == TRAINED:
        small = _trained(bench, model)
    else:
        torch.manual_seed(SEED)
        small = build(MODELS, dict(model), "model", ModelSpec).build(3, bench.dataset.size, 10)
    return on_device(with_dead_channels(small, like), bench.device).eval()


def _trained(bench: Bench, model: Mapping[str, Any]) -> nn.Module:
    s = bench.sizes
    run = plan(
        model,
        {
            "epochs": s.at_epochs,
            "batch_size": s.train_batch,
            "optimizer": {**SGD, "lr": 0.2},
            "schedule": {"name": "one_cycle"},
            **bench.fast_training(),
        },
        [{"name": "pgd_at", "steps": s.at_steps}],
    )
    return train(run, bench.train_part(s.at_images), SEED)


def _filters_dead(bench: Bench, dead: int) -> nn.Module:
    """The parent without the filters that no skip connection adds up: the residual stream keeps its width."""
    model = copy.deepcopy(bench.network("pgd_at"))
    prune = L1FilterPrune(sparsity=float(dead))
    prune.begin(Step(model, None, Threat(), torch.Generator(), no_images))
    return on_device(prune.deploy(model), bench.device).eval()


def _fast(bench: Bench, model: nn.Module, small: Lean) -> FastNetwork:
    fast = FastNetwork(model, precision="bf16", compile=bench.sizes.compile, source=small.model)
    fast.warm_up(bench.part(bench.sizes.batch)[0])
    return fast


def _side(bench: Bench, name: str, network: nn.Module) -> Side[Tensor]:
    s = bench.sizes
    x, y = bench.part(s.attack_images)

    def work(number: int, steps: int = s.attack_steps) -> Tensor:
        attack = PGD(steps=steps, step_size=2 / 255, keep="last")

        def one(x: Tensor, y: Tensor, at: int) -> Tensor:
            return attack(network, x, y, THREAT, bench.streams(number, "zeros", at, len(y)))

        return bench.batches(x, y, one)

    return Side(name, work, lambda: work(0, 2))
