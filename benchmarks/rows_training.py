"""An epoch of PGD adversarial training beside the papers' fp32 loop; accuracies after equal epochs."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from attacks import PGD
from benchmarks import peers
from benchmarks.bench import SGD, Bench
from benchmarks.lines import Line, Target, dearer, faster
from benchmarks.stepper import Stepper, minibatch
from benchmarks.timing import Side, Spread, clock, interleave
from benchmarks.training import THREAT, Turns, plain_layout, plan, train
from defenses import FGSMRS, NFGSM, PGDAT
from defenses.base import Precision
from robustbench_sparse.data import PreparedData


def at_epoch(bench: Bench, budget: float) -> list[Line]:
    """One epoch of PGD adversarial training on cut-down data, our trainer and the plain loop in turn."""
    s = bench.sizes
    data = bench.train_part(s.epoch_images)
    x, y = _all(data)
    run = plan(
        s.model,
        {
            "epochs": s.repeats + 1,
            "batch_size": s.train_batch,
            "optimizer": {**SGD, "lr": 0.01},
            **bench.fast_training(),
        },
        [{"name": "pgd_at", "steps": s.epoch_steps}],
    )
    peer = plain_layout(copy.deepcopy(bench.network("natural")))
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    seconds: list[float] = []

    def turn(number: int) -> None:
        some = len(y) if number else s.train_batch  # the first turn is the warm-up
        began = clock(bench.device)
        peers.adversarial_epoch(
            peer, optimizer, x[:some], y[:some], batch=s.train_batch, eps=THREAT.eps, steps=s.epoch_steps
        )
        if number:
            seconds.append(clock(bench.device) - began)

    turns = Turns(len(y), turn, bench.device)
    train(run, data, 0, turns, lambda model: model.load_state_dict(bench.network("natural").state_dict()))
    first, *rest = turns.seconds
    ours, theirs = Spread.of(rest), Spread.of(seconds)
    bench.facts["first epoch of adversarial training"] = (
        f"{first:.1f} s with building and compiling the network, {ours.median:.1f} s after it"
    )
    note = f"{len(y)} images, batch {s.train_batch}. The first epoch, with building and compiling, took {first:.1f} s."
    what = f"PGD-{s.epoch_steps} adversarial training epoch"
    return [faster(what, "s", ours, "plain fp32 loop", theirs, at_least=3, note=note)]


# What is trained -> precision of the passes, precision of the image's gradient.
PASSES: dict[str, tuple[Precision, Literal["stage", "bf16"]]] = {
    "fp32, gradient in bf16": ("fp32", "bf16"),
    "fp32": ("fp32", "stage"),
    "bf16": ("bf16", "stage"),
}


def single_step(bench: Bench, budget: float) -> list[Line]:
    """Steps of N-FGSM and FGSM-RS beside natural ones, which take one gradient of the image less, and beside PGD-3."""
    x, y = minibatch(bench)
    natural: dict[Precision, Stepper] = {p: Stepper(bench, x, y, precision=p) for p in ("fp32", "bf16")}
    steppers = {f"natural, {precision}": stepper for precision, stepper in natural.items()}
    for how, (precision, gradient) in PASSES.items():
        for defense in (NFGSM(gradient=gradient), FGSMRS(gradient=gradient)):
            name = "N-FGSM" if isinstance(defense, NFGSM) else "FGSM-RS"
            steppers[f"{name}, {how}"] = Stepper(bench, x, y, defense, precision=precision)
    steppers["PGD-3, fp32"] = Stepper(bench, x, y, PGDAT(steps=3, step_size=4 / 255), precision="fp32")
    sides = [Side(name, lambda _, s=s: s.step(), s.step) for name, s in steppers.items()]  # type: ignore[misc]
    measured = interleave(sides, repeats=bench.sizes.short_repeats, budget=budget, device=bench.device)
    times = {name: each.per(1e-3) for name, each in measured.items()}
    engine = "compiled" if bench.sizes.compile else "eager"
    beside_pgd = [
        dearer(
            f"N-FGSM training step, {how}",
            "ms",
            times[f"N-FGSM, {how}"],
            "PGD-3, fp32",
            times["PGD-3, fp32"],
            at_most=0.45,
        )
        for how in ("fp32", "fp32, gradient in bf16")
    ]
    return beside_pgd + [
        dearer(
            f"{name} training step, {how}",
            "ms",
            times[f"{name}, {how}"],
            f"a natural step, {precision}",
            times[f"natural, {precision}"],
            at_most=1.5,
            note=f"Batch of {len(y)}; fp32 eager, bf16 {engine}." if name == "N-FGSM" else "",
        )
        for how, (precision, _) in PASSES.items()
        for name in ("N-FGSM", "FGSM-RS")
    ]


def at_accuracy(bench: Bench, budget: float) -> list[Line]:
    """Clean and PGD accuracy after equal epochs, from equal initial weights, for every seed."""
    s = bench.sizes
    data = bench.train_part(s.accuracy_images)
    run = plan(
        s.model,
        {
            "epochs": s.accuracy_epochs,
            "batch_size": s.train_batch,
            "optimizer": SGD,
            "schedule": {"name": "one_cycle"},
            **bench.fast_training(),
        },
        [{"name": "pgd_at", "steps": s.epoch_steps}],
    )
    scores: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
    for seed in s.seeds:
        start: list[nn.Module] = []
        own = train(run, data, seed, start=lambda model, kept=start: kept.append(copy.deepcopy(model)))  # type: ignore[misc]
        other = _plain(bench, plain_layout(start[0]), data, seed)
        for name, model in (("ours", own), ("plain", other)):
            scores[name].append(_accuracies(bench, model))
        bench.say(f"  seed {seed}: ours {_pair(scores['ours'][-1])}, plain {_pair(scores['plain'][-1])}")
    lines = []
    for i, kind in enumerate(("clean", f"PGD-{s.attack_steps}")):
        ours, theirs = ([score[i] for score in scores[name]] for name in ("ours", "plain"))
        gap = sum(ours) / len(ours) - sum(theirs) / len(theirs)
        each = "; ".join(
            f"seed {k}: {a:.1f} / {b:.1f}" for k, a, b in zip(s.seeds, ours, theirs, strict=True)
        )
        lines.append(
            Line(
                f"{kind} accuracy after {s.accuracy_epochs} epochs of PGD-{s.epoch_steps} training",
                "%",
                Spread.of(ours),
                "plain fp32 loop",
                Spread.of(theirs),
                target=Target(">=", -1, "points on average"),
                got=gap,
                agreement=each,
                note=f"Ours is {gap:+.2f} points on average; {len(bench.test[1])} test images, "
                f"{data.count('train')} training images.",
            )
        )
    return lines


def _plain(bench: Bench, model: nn.Module, data: PreparedData, seed: int) -> nn.Module:
    """The papers' loop with the same schedule, from the same weights."""
    s, (x, y) = bench.sizes, _all(data)
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = s.accuracy_epochs * data.steps_per_epoch(s.train_batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
    )
    for _ in range(s.accuracy_epochs):
        peers.adversarial_epoch(
            model,
            optimizer,
            x,
            y,
            batch=s.train_batch,
            eps=THREAT.eps,
            steps=s.epoch_steps,
            after_step=schedule.step,
        )
    return model.eval()


def _accuracies(bench: Bench, model: nn.Module) -> tuple[float, float]:
    """Clean and PGD accuracy in percent, both attacked and judged in fp32."""
    x, y = bench.test
    attack = PGD(steps=bench.sizes.attack_steps, step_size=2 / 255)

    def one(x: Tensor, y: Tensor, at: int) -> Tensor:
        return attack(model, x, y, THREAT, bench.streams(0, "accuracy", at, len(y)))

    clean, robust = bench.verdict(model, x, y), bench.verdict(model, bench.batches(x, y, one), y)
    return 100 * clean.float().mean().item(), 100 * robust.float().mean().item()


def _all(data: PreparedData) -> tuple[Tensor, Tensor]:
    return data.gather("train", torch.arange(data.count("train")))


def _pair(score: tuple[float, float]) -> str:
    return f"{score[0]:.1f} % clean, {score[1]:.1f} % robust"
