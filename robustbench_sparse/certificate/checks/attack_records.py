"""Checks B: did the attacks do their work, and do their results last?"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS, PGD
from attacks.base import BALL_SLACK, Attack, SampleRandom, Threat
from attacks.iterate import steepest
from attacks.losses import cross_entropy
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.replay import margins, replay
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.plugins import SettingError, find
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain, read_json
from robustbench_sparse.foundation.progress import Silent as NoProgress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.judging.judge import Judge, JudgeSettings, seeks_smallest
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcomes import JUDGED, UNDECIDED
from robustbench_sparse.runs.rebuild import has_recipe

USED = 0.9  # share of the way that attacks which failed must have gone
ENOUGH = 5  # images that a median is taken of
LINEAR_IMAGES, LINEAR_CLASSES = 8, 10
LONGER = 1.25  # than the smallest perturbation there is
ROUNDING = 1e-4  # a margin that another order of summation may turn
LOST = 0.05  # share of the images whose adversarial does not survive 8 bits
LISTED = 20  # images or names in a finding at most
OWN = "this suite"


def attacks_use_their_budget(s: Subject) -> Finding:
    """Norms of the stored outcomes."""
    plans = [p for p in s.context.plans if "adv_correct" in s.context.outcomes.get(p.label, ())]
    if not plans:
        return skipped("no stored outcomes of attacks")
    over: list[str] = []
    outside: list[str] = []
    idle: list[str] = []
    measured: dict[str, Value] = {}
    gradient = _gradient(s)
    for plan in plans:
        table, threat = s.context.outcomes[plan.label], plan.threat
        flags = ["outside_box", "outside_ball"] if plan.attack.bounded else ["outside_box"]
        outside += [f"{plan.label}: {f}" for f in flags if bool((table["status"] == f).any())]
        if plan.attack.own_set or not 0 < threat.eps < math.inf:
            continue
        size = _numbers(table, threat.norm)
        measured[f"{plan.label} largest norm / eps"] = float(size.max() / threat.eps)
        if not bool((size <= threat.reach).all()):
            over.append(plan.label)
        if plan.attack.bounded and not plan.attack.weak:
            used = _used(s, plan, table, gradient)
            measured[f"{plan.label} used"] = used
            if used is not None and used <= USED:
                idle.append(plan.label)
    measured |= {"outside_ball": over, "outside": outside, "idle": idle}
    done = f"norms of {len(plans)} attacks' stored outcomes against eps and one full step along the gradient"
    return ruled(not (over or outside or idle), done, measured)


ATTACKS_USE_THEIR_BUDGET = Check(
    id="B1",
    title="the attacks use their budget",
    source=f"{OWN}; after a public C&W script for EnResNet that multiplies its perturbation by eps once more",
    rule="every stored norm <= eps + rounding; no candidate left ball or box; and where a bounded attack failed, "
    f"the median norm > {USED} of one step of length eps along the gradient, clipped to the box (at least "
    f"{ENOUGH} such images). Images that were fooled do not count for the median: an attack leaves them early, "
    "anywhere in the ball. Nor do weak attacks and those that seek the smallest perturbation, see B2.",
    meaning="An attack gave up although it might have gone further: its perturbation is scaled down, its step "
    "sizes do not add up to eps, or its gradient is zero.",
    advice="Look at the named attack's steps and step_size; if these reach eps, at checks G1 and V1.",
    run=attacks_use_their_budget,
)


def _gradient(s: Subject) -> Tensor | None:
    """Of the cross-entropy at the clean images, like ``s.x``; None where the network has none to give."""
    parts = torch.split(torch.arange(len(s), device=s.x.device), s.batch_size)
    try:
        return torch.cat([s.gradient(s.x[r], "b1", cross_entropy, r)[0] for r in parts])
    except RuntimeError:  # of autograd: no check of the budget is the place to say so
        return None


def _used(s: Subject, plan: AttackPlan, table: pd.DataFrame, gradient: Tensor | None) -> float | None:
    """Median over the failures of norm / norm of one full step along the gradient; None for too few of them."""
    threat = plan.threat
    room = torch.full((len(s),), threat.eps, dtype=torch.float64)
    if gradient is not None:
        step = threat.project(s.x + threat.eps * steepest(gradient.nan_to_num(), threat.norm), s.x) - s.x
        length = threat.size(step).double().cpu()
        room = torch.where(length > 0, length, room)
    mine = table.set_index("index").reindex(s.index.tolist())
    failed = (_numbers(mine, "adv_correct") > 0.5) & (_numbers(mine, "clean_correct") > 0.5)
    if failed.sum() < ENOUGH:
        return None
    return float(np.median((_numbers(mine, threat.norm) / room.numpy())[failed]))


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)


class Linear(nn.Module):
    """Logits W x + b of flattened images.

    Args:
        weight: W (K, d).
        bias: b (K,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        out: Tensor = self.linear(x.flatten(1))
        return out


def smallest_perturbations_are_found(s: Subject) -> Finding:
    """Minimum-norm attacks where the smallest perturbation is known."""
    plans = [p for p in s.context.plans if seeks_smallest(p.attack)]
    if not plans:
        return skipped("the benchmark has no minimum-norm attack")
    ratios = {p.label: _ratio(s, p) for p in plans}
    done = f"{len(plans)} minimum-norm attacks on {LINEAR_IMAGES} images of a linear network"
    return ruled(all(r <= LONGER for r in ratios.values()), done, ratios)


SMALLEST_PERTURBATIONS_ARE_FOUND = Check(
    id="B2",
    title="minimum-norm attacks find the minimum",
    source=f"{OWN}; the distance to a linear boundary by duality, as in Moosavi-Dezfooli et al. 2016 (DeepFool)",
    rule=f"median of norm / exact distance <= {LONGER} on a random linear network, with its own settings",
    meaning="The distances of such an attack are too long even where nothing hides the boundary.",
    advice="Raise steps or search_steps of the named attack, or use its defaults.",
    run=smallest_perturbations_are_found,
)


def _ratio(s: Subject, plan: AttackPlan) -> float:
    """Median of norm / smallest norm; inf where the attack finds nothing."""
    # Of two classes, the class that a targeted attack chooses is the nearest one.
    classes = min(s.classes, LINEAR_CLASSES) if plan.attack.target == "none" else 2
    model, x, y = _linear(s, plan.threat, classes)
    exact = _distance(model, x, y, plan.threat)
    random = SampleRandom.for_images(s.seed, "certificate/b2", range(len(x)))
    found = plan.attack(model, x, y, plan.threat, random).clamp(0, 1)
    with torch.no_grad():
        fooled = model(found).argmax(1) != y
    size = torch.where(fooled, plan.threat.size(found - x), math.inf)
    return float((size / exact).median())


def _linear(s: Subject, threat: Threat, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A random linear network, images so near to grey that the box is out of reach, and their labels.

    The images lie about as far from the boundary as the threat reaches, and the logits are of usual size.
    """
    shape, device = s.x.shape[1:], s.x.device
    pixels = math.prod(shape)
    generator = torch.Generator().manual_seed(derive(s.seed, "certificate/b2"))
    scale = 1.0 if threat.norm == "linf" else math.sqrt(pixels)
    radius = min(threat.eps, 0.05 * scale) if threat.eps > 0 else 0.02 * scale
    weight = torch.randn(classes, pixels, generator=generator)
    y = torch.randint(classes, (LINEAR_IMAGES,), generator=generator)
    far = radius * (0.5 + torch.rand(LINEAR_IMAGES, 1, generator=generator))
    weight = weight - weight.mean(0)
    x = 0.5 + far * steepest(weight[y], threat.norm)
    dual = weight.abs().sum(1) if threat.norm == "linf" else weight.norm(dim=1)
    weight = weight * (5 / (radius * dual.mean()))  # an image's own logit is about 5
    model = Linear(weight.to(device), (-0.5 * weight.sum(1)).to(device)).eval()
    x = x.view(-1, *shape).to(device)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def _distance(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The smallest perturbation that changes a linear network's answer y, (B,): least margin / dual norm."""
    assert isinstance(model, Linear)
    with torch.no_grad():
        logits = model(x)
        gap = logits.gather(1, y[:, None]) - logits  # (B, K)
        apart = model.linear.weight[y][:, None] - model.linear.weight[None]  # (B, K, d)
        dual = apart.abs().sum(2) if threat.norm == "linf" else apart.norm(dim=2)
        own = torch.zeros_like(gap, dtype=torch.bool).scatter_(1, y[:, None], True)
        nearest: Tensor = (gap / dual).masked_fill(own, math.inf).amin(1)
    return nearest


def adversarials_last(s: Subject) -> Finding:
    """The white box's adversarials in a new process."""
    folder = s.context.folder
    if folder is None or not has_recipe(folder):
        return skipped("no run's folder that the network could be rebuilt from")
    candidate = s.white.candidate
    here, margin = s.judged(candidate, "b3").cpu(), margins(s, candidate, "b3").cpu()
    done = f"{len(s)} adversarials stored, read and judged by a new process in float32"
    try:
        there = replay(s, folder, candidate, "b3")
    except UserError as e:
        return Finding(status="failed", done=done, why=str(e))
    apart = here != there.correct
    measured: dict[str, Value] = {
        "here_acc": here.mean().item(),
        "there_acc": there.correct.mean().item(),
        "largest margin difference": (margin - there.margin).abs().max().item(),
    }
    if s.stochastic:
        tau = s.tau(here, there.correct)
        passes = abs((here - there.correct).mean().item()) <= tau
        return ruled(passes, done, {**measured, "tau": tau})
    rounding = apart & (torch.minimum(margin.abs(), there.margin.abs()) < ROUNDING)
    other = (apart & ~rounding).nonzero().flatten()
    measured |= {"rounding": s.indices(rounding.nonzero().flatten()[:LISTED])}
    return ruled(len(other) == 0, done, {**measured, "different": s.indices(other[:LISTED])})


ADVERSARIALS_LAST = Check(
    id="B3",
    title="the adversarials last",
    source=f"{OWN}; prompted by adversarials that fail once saved (github.com/bethgelab/foolbox/issues/264)",
    rule="every verdict the same in a new process, on the network rebuilt from its file, but for margins below "
    f"{ROUNDING}; random networks: accuracies within tau",
    meaning="What was attacked is not what the file holds, or verdicts depend on what a process did before.",
    advice="Look for state that forward passes change, and for weights changed after they were saved.",
    run=adversarials_last,
    refutes=True,
)


def adversarials_survive_8_bits(s: Subject) -> Finding:
    """Adversarials as images of 8 bits."""
    rows, eps, pixels = s.correct_rows, s.threat.eps, s.x[0].numel()
    if len(rows) == 0:
        return skipped("no image is classified right")
    rounding = 0.5 / 255 if s.threat.norm == "linf" else math.sqrt(pixels / 12) / 255
    if rounding > eps / 4:
        return skipped(f"eps = {eps:.4g} is no more than four times the rounding to 8 bits, {rounding:.2g}")
    attack = PGD(steps=s.budget.steps, loss="margin", early_stop=False, eot=s.eot)
    found = s.attack(attack, "b4", rows=rows)
    whole = (found.candidate * 255).round() / 255
    correct = s.judged(whole, "b4/rounded", rows)
    farthest = s.threat.size(whole - s.x[rows]).max().item()
    reach = 1 / 510 if s.threat.norm == "linf" else math.sqrt(pixels) / 510
    lost = correct.mean().item() - found.accuracy
    measured: dict[str, Value] = {
        "acc": found.accuracy,
        "rounded_acc": correct.mean().item(),
        "lost": s.indices(rows[(correct > 0.5) & (found.correct <= 0.5)][:LISTED]),
        "largest norm": farthest,
        "in the ball but for rounding": farthest <= eps + reach + BALL_SLACK,
    }
    done = f"PGD-{attack.steps} on the margin without early stop on {len(rows)} images, rounded to 8 bits"
    return ruled(not (lost > LOST and s.exceeds(correct, found.correct)), done, measured)


ADVERSARIALS_SURVIVE_8_BITS = Check(
    id="B4",
    title="the adversarials survive 8 bits",
    source="github.com/bethgelab/foolbox/issues/423; threshold: this suite",
    rule=f"rounded to multiples of 1/255, adversarials that were not stopped early lose <= {100 * LOST:g} "
    "points of success, or no more than tau; skipped where the rounding is above a quarter of eps",
    meaning="The network errs on images that no file of pictures can hold: its answers hang on the last bits.",
    advice="Report the rounded accuracy beside the other; look for rounding or thresholds inside the network.",
    run=adversarials_survive_8_bits,
)


def failures_are_no_robustness(s: Subject) -> Finding:
    """Failed attacks: none may count as withstood."""
    faults = [f"self-test: {fault}" for fault in _fails_open()]
    stored = bool(s.context.outcomes)
    for plan in s.context.plans if stored else ():
        faults += _faults_of_plan(s, plan)
    if stored and "clean" in s.context.outcomes:
        faults += _faults_of_table("clean", s.context.outcomes["clean"], "correct")
    about = f", and {len(s.context.outcomes)} stored outcomes" if stored else ""
    done = f"an attack that raises and one that returns NaN, sent through the judge{about}"
    return ruled(not faults, done, {"faults": faults[:LISTED]}, "; ".join(faults[:3]))


FAILURES_ARE_NO_ROBUSTNESS = Check(
    id="B5",
    title="a failed attack is no robustness",
    source=OWN,
    rule="every attack of the benchmark is known, judged with its present settings on all images, with a verdict "
    "on each; none of a failure; and attacks that fail on purpose leave none",
    meaning="An attack that crashed, returned NaN or never ran would count as withstood.",
    advice="Mend the named attack or network, delete its outcome, and judge again.",
    run=failures_are_no_robustness,
    refutes=True,
)


def _faults_of_plan(s: Subject, plan: AttackPlan) -> list[str]:
    label = plan.label
    try:
        known = isinstance(plan.attack, find(ATTACKS, plan.name, "attack", Attack))
    except SettingError:
        known = False
    out = [] if known else [f"{label}: no attack is called {plan.name!r}"]
    table = s.context.outcomes.get(label)
    if table is None:
        return [*out, f"{label}: no outcome"]
    out += _faults_of_table(label, table, "adv_correct")
    clean = s.context.outcomes.get("clean")
    if clean is not None and sorted(clean["index"]) != sorted(table.get("index", ())):
        out.append(f"{label}: other images than clean")
    path = s.context.folder / names.account(label) if s.context.folder is not None else None
    if path is not None:
        if not path.is_file():
            return [*out, f"{label}: no {path.name}"]
        about = read_json(path)
        if about.get("status") != "ok":
            out.append(f"{label}: {about.get('status')}: {about.get('reason')}")
        out += [f"{label}: {flag}" for flag in ("crashed", "nonfinite") if about.get("flags", {}).get(flag)]
        if about.get("key", {}).get("attack") != plain(plan.record()):
            out.append(f"{label}: judged with other settings")
    return out


def _faults_of_table(label: str, table: pd.DataFrame, verdict: str) -> list[str]:
    if verdict not in table:
        return [f"{label}: no verdict on any image"]
    undecided = (table["status"] == UNDECIDED).to_numpy()
    missing = np.isnan(_numbers(table, verdict)) & ~undecided
    broken = ~table["status"].isin(JUDGED).to_numpy() & ~(undecided & np.isnan(_numbers(table, verdict)))
    out = [f"{label}: {int(missing.sum())} images without a verdict"] if missing.any() else []
    if (broken & ~missing).any():
        out.append(f"{label}: {int((broken & ~missing).sum())} failures with a verdict")
    return out


@dataclass(frozen=True, kw_only=True)
class _Raises(Attack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        raise RuntimeError("on purpose")


@dataclass(frozen=True, kw_only=True)
class _NotANumber(Attack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return torch.full_like(x, math.nan)


def _fails_open() -> list[str]:
    """Which attacks that fail on purpose leave a verdict, on images that the network classifies correctly."""
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    toy = Dataset(name="toy", label="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    first = Linear(torch.zeros(2, 4), torch.tensor([1.0, 0.0])).eval()  # says the first class of everything
    out = []
    with tempfile.TemporaryDirectory() as scratch:
        data, folder = PreparedData(toy, validation=0), Path(scratch)
        judge = Judge(first, data, folder, JudgeSettings(seed=0), "self-test", NoProgress())
        for label, attack in (("raises", _Raises()), ("nan", _NotANumber())):
            table = judge.attack(AttackPlan(label, label, attack, Threat()))
            verdicts = int(table["adv_correct"].notna().sum()) if "adv_correct" in table else 0
            if verdicts or read_json(folder / names.account(label))["status"] == "ok":
                out.append(f"an attack that fails ({label}) left a verdict")
    return out


CHECKS: tuple[Check, ...] = (
    ATTACKS_USE_THEIR_BUDGET,
    SMALLEST_PERTURBATIONS_ARE_FOUND,
    ADVERSARIALS_LAST,
    ADVERSARIALS_SURVIVE_8_BITS,
    FAILURES_ARE_NO_ROBUSTNESS,
)
