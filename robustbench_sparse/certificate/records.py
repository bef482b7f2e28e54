"""Checks B, S and H: is what was attacked, counted and reported what the row says it is?

B asks whether the attacks did their work and their results last, S whether the weights that are counted are those that
were judged, H whether the comparison is fair.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS, PGD
from attacks.base import Attack, SampleRandom, Threat
from attacks.iterate import steepest
from attacks.losses import cross_entropy
from attacks.transfer import Silent
from defenses.base import prunable
from robustbench_sparse.certificate.check import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.replay import margins, replay
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.errors import UserError
from robustbench_sparse.fast import logits_in_parts
from robustbench_sparse.files import fill, load_weights, read_json
from robustbench_sparse.judge import BALL_SLACK, L2_SLACK, Judge, Protocol, plain, seeks_smallest
from robustbench_sparse.paired import compare
from robustbench_sparse.plan import AttackPlan
from robustbench_sparse.plugins import SettingError, find
from robustbench_sparse.progress import Silent as NoProgress
from robustbench_sparse.runs import sha256
from robustbench_sparse.sparsity import count_sparsity
from robustbench_sparse.stats import wilson
from robustbench_sparse.stored import architecture, has_recipe
from robustbench_sparse.streams import derive

USED = 0.9  # share of the way that attacks which failed must have gone
ENOUGH = 5  # images that a median is taken of
LINEAR_IMAGES, LINEAR_CLASSES = 8, 10
LONGER = 1.25  # than the smallest perturbation there is
ROUNDING = 1e-4  # a margin that another order of summation may turn
LOST = 0.05  # share of the images whose adversarial does not survive 8 bits
POINTS = 0.1  # percentage points of a sparsity
LEAKED = 0.01  # share of the test images
SEEDS = 3
LISTED = 20


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Which images were trained on, selected on and judged.

    Attributes:
        train, val: positions in the data set's training part.
        train_hashes, val_hashes: of these images, see ``PreparedData.image_hashes``.
        test: positions of the judged images in the test part.
        test_hashes: of these images.
    """

    train: np.ndarray[Any, Any]
    val: np.ndarray[Any, Any]
    train_hashes: np.ndarray[Any, Any]
    val_hashes: np.ndarray[Any, Any]
    test: np.ndarray[Any, Any]
    test_hashes: np.ndarray[Any, Any]


def facts_of(data: PreparedData) -> DataFacts:
    """The facts of a data set as a run used it."""
    return DataFacts(
        train=data.indices["train"].numpy(),
        val=data.indices["val"].numpy(),
        train_hashes=data.image_hashes("train"),
        val_hashes=data.image_hashes("val"),
        test=data.indices["test"].numpy(),
        test_hashes=data.image_hashes("test"),
    )


# B: what the attacks did ------------------------------------------------------------------------------------


def b1(s: Subject) -> Finding:
    """Norms of the stored outcomes."""
    plans = [p for p in s.context.plans if p.label in s.context.outcomes]
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
        slack = BALL_SLACK + (L2_SLACK * threat.eps if threat.norm == "l2" else 0.0)
        measured[f"{plan.label} largest norm / eps"] = float(size.max() / threat.eps)
        if not bool((size <= threat.eps + slack).all()):
            over.append(plan.label)
        if plan.attack.bounded and not plan.attack.weak:
            used = _used(s, plan, table, gradient)
            measured[f"{plan.label} used"] = used
            if used is not None and used <= USED:
                idle.append(plan.label)
    measured |= {"outside_ball": over, "outside": outside, "idle": idle}
    done = f"norms of {len(plans)} attacks' stored outcomes against eps and one full step along the gradient"
    return ruled(not (over or outside or idle), done, measured)


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
        left = threat.size(step).double().cpu()
        room = torch.where(left > 0, left, room)
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


def b2(s: Subject) -> Finding:
    """Minimum-norm attacks where the smallest perturbation is known."""
    plans = [p for p in s.context.plans if seeks_smallest(p.attack)]
    if not plans:
        return skipped("the benchmark has no minimum-norm attack")
    ratios = {p.label: _ratio(s, p) for p in plans}
    done = f"{len(plans)} minimum-norm attacks on {LINEAR_IMAGES} images of a linear network"
    return ruled(all(r <= LONGER for r in ratios.values()), done, ratios)


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


def b3(s: Subject) -> Finding:
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
    apart = here != there.right
    measured: dict[str, Value] = {
        "here_acc": here.mean().item(),
        "there_acc": there.right.mean().item(),
        "largest margin difference": (margin - there.margin).abs().max().item(),
    }
    if s.stochastic:
        tau = s.tau(here, there.right)
        passes = abs((here - there.right).mean().item()) <= tau
        return ruled(passes, done, {**measured, "tau": tau})
    rounding = apart & (torch.minimum(margin.abs(), there.margin.abs()) < ROUNDING)
    other = (apart & ~rounding).nonzero().flatten()
    measured |= {"rounding": s.indices(rounding.nonzero().flatten()[:LISTED])}
    return ruled(len(other) == 0, done, {**measured, "different": s.indices(other[:LISTED])})


def b4(s: Subject) -> Finding:
    """Adversarials as images of 8 bits."""
    rows, eps, pixels = s.right_rows, s.threat.eps, s.x[0].numel()
    if len(rows) == 0:
        return skipped("no image is classified right")
    rounding = 0.5 / 255 if s.threat.norm == "linf" else math.sqrt(pixels / 12) / 255
    if rounding > eps / 4:
        return skipped(f"eps = {eps:.4g} is no more than four times the rounding to 8 bits, {rounding:.2g}")
    attack = PGD(steps=s.budget.steps, loss="margin", early_stop=False, eot=s.eot)
    found = s.attack(attack, "b4", rows=rows)
    whole = (found.candidate * 255).round() / 255
    right = s.judged(whole, "b4/rounded", rows)
    farthest = s.threat.size(whole - s.x[rows]).max().item()
    reach = 1 / 510 if s.threat.norm == "linf" else math.sqrt(pixels) / 510
    lost = right.mean().item() - found.accuracy
    measured: dict[str, Value] = {
        "acc": found.accuracy,
        "rounded_acc": right.mean().item(),
        "lost": s.indices(rows[(right > 0.5) & (found.right <= 0.5)][:LISTED]),
        "largest norm": farthest,
        "in the ball but for rounding": farthest <= eps + reach + BALL_SLACK,
    }
    done = f"PGD-{attack.steps} on the margin without early stop on {len(rows)} images, rounded to 8 bits"
    return ruled(not (lost > LOST and s.exceeds(right, found.right)), done, measured)


def b5(s: Subject) -> Finding:
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
    if clean is not None and sorted(clean["index"]) != sorted(table["index"]):
        out.append(f"{label}: other images than clean")
    path = s.context.folder / "outcomes" / f"{label}.json" if s.context.folder is not None else None
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
    missing = np.isnan(_numbers(table, verdict))
    broken = table["status"].isin(("crashed", "nonfinite")).to_numpy()
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
    """Which attacks that fail on purpose leave a verdict, on images that the network classifies right."""
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    toy = Dataset(name="toy", label="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    first = Linear(torch.zeros(2, 4), torch.tensor([1.0, 0.0])).eval()  # says the first class of everything
    out = []
    with tempfile.TemporaryDirectory() as scratch:
        data, folder = PreparedData(toy, validation=0), Path(scratch)
        judge = Judge(first, data, folder, Protocol(seed=0), "self-test", NoProgress())
        for label, attack in (("raises", _Raises()), ("nan", _NotANumber())):
            table = judge.attack(AttackPlan(label, label, attack, Threat()))
            verdicts = int(table["adv_correct"].notna().sum()) if "adv_correct" in table else 0
            if verdicts or read_json(folder / f"{label}.json")["status"] == "ok":
                out.append(f"an attack that fails ({label}) left a verdict")
    return out


# S: which weights -------------------------------------------------------------------------------------------


def s1(s: Subject) -> Finding:
    """Recount from the file."""
    claims, path = s.context.claims, _weights_of(s)
    if claims is None or path is None:
        return skipped("nothing claimed, or no file of weights")
    done = f"zeros, parameters and multiply-accumulates counted in {path.name}"
    try:
        weights = load_weights(path)
        model = _network_of(s)
        fill(model, weights, path)
    except UserError as e:
        return Finding(status="failed", done=done, why=str(e))
    counted = count_sparsity(model.cpu(), s.x.shape[1], s.x.shape[2])
    tensors = [weights[name] for name in prunable(model)]
    zeros, whole = sum(int((w == 0).sum()) for w in tensors), sum(w.numel() for w in tensors)
    plainly = 100 * zeros / whole if whole else None
    wrong = _wrong_claims(claims, counted)
    if not _near(counted["weight_sparsity"], plainly):
        wrong.append("weight_sparsity (two ways of counting differ)")
    names = [k for k in counted if k != "layers" and k in claims]
    if not names:
        return skipped("nothing is claimed that could be counted")
    measured: dict[str, Value] = {name: counted[name] for name in names}
    measured |= {f"claimed {name}": claims[name] for name in names}
    return ruled(not wrong, done, {**measured, "zeros in the file": zeros, "wrong": wrong})


def _near(first: float | None, second: float | None) -> bool:
    # The slack is for binary fractions: 80.1 - 80.0 is above 0.1 in floating point.
    return first == second or (
        first is not None and second is not None and abs(first - second) <= POINTS + 1e-9
    )


def _wrong_claims(claims: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    shares = [k for k in counted if k.endswith("_sparsity") and k in claims]
    wrong = [k for k in shares if not _near(claims[k], counted[k])]
    wrong += [k for k in ("parameters", "macs") if k in claims and claims[k] != counted[k]]
    live, whole = claims.get("nonzero_parameters"), max(counted["parameters"], 1)
    if live is not None and abs(live - counted["nonzero_parameters"]) > POINTS / 100 * whole:
        wrong.append("nonzero_parameters")
    return wrong


def _weights_of(s: Subject) -> Path | None:
    if s.context.weights is not None:
        return s.context.weights
    path = s.context.folder / "model.safetensors" if s.context.folder is not None else None
    return path if path is not None and path.is_file() else None


def _network_of(s: Subject) -> nn.Module:
    """A network to fill: built from the run's record, or a copy of a foreign one."""
    if s.context.folder is not None and has_recipe(s.context.folder):
        return architecture(s.context.folder, s.x.shape[1], s.x.shape[2], s.classes)
    return copy.deepcopy(s.model)


def s2(s: Subject) -> Finding:
    """One file for the zeros and for the verdicts."""
    path = _weights_of(s)
    if path is None:
        return skipped("no file of weights")
    try:
        stored = load_weights(path)
    except UserError as e:
        return Finding(status="failed", done=f"{path.name} read", why=str(e))
    own = s.model.state_dict()
    different = [name for name in {**own, **stored} if not _equal(own.get(name), stored.get(name))]
    others, looked = _other_weights(s, sha256(path))
    measured: dict[str, Value] = {
        "different tensors": different[:LISTED],
        "outcomes of other weights": others[:LISTED],
        "outcomes": looked,
        "zeros in the file": sum(int((w == 0).sum()) for w in stored.values()),
        "zeros in the network": sum(int((w == 0).sum()) for w in own.values()),
    }
    done = f"{len(own)} tensors and the hashes kept with {looked} outcomes against {path.name}"
    return ruled(not different and not others, done, measured)


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or first.dtype != second.dtype:
        return False
    return torch.equal(first.cpu(), second.cpu())


def _other_weights(s: Subject, digest: str) -> tuple[list[str], int]:
    """Outcomes of the row that were made on another file, and how many were looked at."""
    if s.context.folder is None:
        return [], 0
    labels = ["clean", *(p.label for p in s.context.plans)]
    paths = [s.context.folder / "outcomes" / f"{label}.json" for label in labels]
    about = {path.stem: read_json(path) for path in paths if path.is_file()}
    identity = {label: str(a.get("key", {}).get("identity", "")) for label, a in about.items()}
    return [label for label, name in identity.items() if name.split("/")[0] != digest], len(about)


def s3(s: Subject) -> Finding:
    """Image by image against the dense parent."""
    if s.context.parent is None:
        return skipped("no dense parent is known")
    label, network = s.context.parent
    parent = Subject(
        network,
        s.x,
        s.y,
        s.index,
        s.threat,
        classes=s.classes,
        seed=s.seed,
        budget=s.budget,
        batch_size=s.batch_size,
    )
    # One attack, the same for both: the smallest verdict of many flatters the network that was attacked less.
    rights = []
    for one in (s, parent):
        kind, attack = one.battery()[1]
        rights.append(one.attack(attack, f"s3/{kind}").right)
    pair = compare(rights[0].tolist(), rights[1].tolist())
    measured: dict[str, Value] = {
        "acc": rights[0].mean().item(),
        "parent_acc": rights[1].mean().item(),
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "lost_count": len(pair.won),
        "won_count": len(pair.lost),
        "lost": s.indices(torch.tensor(pair.won[:LISTED], dtype=torch.long)),
        "won": s.indices(torch.tensor(pair.lost[:LISTED], dtype=torch.long)),
    }
    word = "better" if pair.difference > 0 else "worse"
    verdict = (
        f"{word} than {label}" if pair.p < 0.05 else f"neither better nor worse than {label} (p >= 0.05)"
    )
    done = f"APGD-{s.budget.steps} on the margin, the same for {label} and this row, on {len(s)} images"
    return Finding(status="reported", done=done, measured=measured, why=verdict)


def same_logits(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[float, float]:
    """How far two networks are apart, noise off.

    Args:
        first, second: networks in eval mode, on the images' device.
        x: images (B, C, H, W).

    Returns:
        The largest difference of their logits, inf where one is not finite; and the largest size of the first's logits.
    """
    a, b = (logits_in_parts(Silent(network).eval(), x).float() for network in (first, second))
    if a.shape != b.shape or not bool(a.isfinite().all() and b.isfinite().all()):
        return math.inf, math.inf
    return (a - b).abs().max().item(), a.abs().max().item()


def s4(s: Subject) -> Finding:
    """The network without its dead channels."""
    if s.context.shrunk is None:
        return skipped("no channels were removed: the masked network itself is judged")
    difference, size = same_logits(s.model, s.context.shrunk, s.x)
    allowed = ROUNDING * max(1.0, size) if math.isfinite(size) else 0.0
    done = f"logits of the masked and the shrunk network on {len(s)} images, noise off"
    return ruled(difference <= allowed, done, {"largest difference": difference, "allowed": allowed})


# H: a fair comparison ---------------------------------------------------------------------------------------


def h1(s: Subject) -> Finding:
    """Nothing learned or chosen on test images."""
    facts = s.context.data
    if not isinstance(facts, DataFacts):
        return skipped("what the network was trained on is not known")
    shared = np.intersect1d(facts.train, facts.val)
    seen = np.concatenate([facts.train_hashes, facts.val_hashes])
    leaked = facts.test[np.isin(facts.test_hashes, seen)]
    low, _ = wilson(len(leaked), len(facts.test))
    blind = _chosen_blindly(s.context.folder)
    measured: dict[str, Value] = {
        "trained and validated on": [int(i) for i in shared[:LISTED]],
        "test images seen in training": len(leaked),
        "seen_share": len(leaked) / max(len(facts.test), 1),
        "seen": [int(i) for i in leaked[:LISTED]],
        "chosen without a validation part": blind,
    }
    done = (
        f"positions of {len(facts.train)} training and {len(facts.val)} validation images, and bytes of these "
        f"against {len(facts.test)} test images"
    )
    return ruled(len(shared) == 0 and not blind and not low > LEAKED, done, measured)


def _chosen_blindly(folder: Path | None) -> bool:
    """Whether a run's record says that an epoch was chosen by its accuracy, with no images held out for that."""
    if folder is None or not has_recipe(folder):
        return False
    record = read_json(folder / "run.json")["record"]
    chosen = any(stage.get("selection") != "last" for stage in record.get("stages", []))
    return chosen and not record.get("validation")


def h2(s: Subject) -> Finding:
    """Seeds, and the interval of the images looked at."""
    right = s.white.right
    low, high = wilson(min(right.sum().item(), len(s)), len(s))
    why = "" if s.context.seeds >= SEEDS else f"fewer than {SEEDS} seeds: nothing is known of other trainings"
    measured: dict[str, Value] = {
        "seeds": s.context.seeds,
        "n": len(s),
        "acc": right.mean().item(),
        "low": low,
        "high": high,
    }
    return Finding(
        status="reported",
        done=f"seeds counted: {s.context.seeds}; Wilson's 95 % interval of the white box on {len(s)} images",
        measured=measured,
        why=why,
    )


CARLINI = "Carlini et al. 2019 (arXiv 1902.06705)"
OWN = "this suite"

CHECKS: tuple[Check, ...] = (
    Check(
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
        run=b1,
    ),
    Check(
        id="B2",
        title="minimum-norm attacks find the minimum",
        source=f"{OWN}; the distance to a linear boundary by duality, as in Moosavi-Dezfooli et al. 2016 (DeepFool)",
        rule=f"median of norm / exact distance <= {LONGER} on a random linear network, with its own settings",
        meaning="The distances of such an attack are too long even where nothing hides the boundary.",
        advice="Raise steps or search_steps of the named attack, or use its defaults.",
        run=b2,
    ),
    Check(
        id="B3",
        title="the adversarials last",
        source=f"{OWN}; prompted by adversarials that fail once saved (github.com/bethgelab/foolbox/issues/264)",
        rule="every verdict the same in a new process, on the network rebuilt from its file, but for margins below "
        f"{ROUNDING}; random networks: accuracies within tau",
        meaning="What was attacked is not what the file holds, or verdicts depend on what a process did before.",
        advice="Look for state that forward passes change, and for weights changed after they were saved.",
        run=b3,
        refutes=True,
    ),
    Check(
        id="B4",
        title="the adversarials survive 8 bits",
        source="github.com/bethgelab/foolbox/issues/423; threshold: this suite",
        rule=f"rounded to multiples of 1/255, adversarials that were not stopped early lose <= {100 * LOST:g} "
        "points of success, or no more than tau; skipped where the rounding is above a quarter of eps",
        meaning="The network errs on images that no file of pictures can hold: its answers hang on the last bits.",
        advice="Report the rounded accuracy beside the other; look for rounding or thresholds inside the network.",
        run=b4,
    ),
    Check(
        id="B5",
        title="a failed attack is no robustness",
        source=OWN,
        rule="every attack of the benchmark is known, judged with its present settings on all images, with a verdict "
        "on each; none of a failure; and attacks that fail on purpose leave none",
        meaning="An attack that crashed, returned NaN or never ran would count as withstood.",
        advice="Mend the named attack or network, delete its outcome, and judge again.",
        run=b5,
        refutes=True,
    ),
    Check(
        id="S1",
        title="the sparsity is in the file",
        source=f"{OWN}; after published pruning code whose networks hold fewer zeros than asked for",
        rule=f"percentages counted in the saved file within {POINTS} points of those claimed; parameters and "
        "multiply-accumulates equal; zero weights counted a second time, straight from the tensors",
        meaning="The row's sparsity is wrong.",
        advice="Count again from the file: delete sparsity.json and run the benchmark.",
        run=s1,
        refutes=True,
    ),
    Check(
        id="S2",
        title="what is counted is what was attacked",
        source=f"{OWN}; after published code that prunes, and then tests the dense network",
        rule="the network examined equals the saved file bit for bit; the hash kept with each outcome is the file's",
        meaning="Sparsity and robustness belong to different networks.",
        advice="Delete the folder outcomes and judge the saved file.",
        run=s2,
        refutes=True,
    ),
    Check(
        id="S3",
        title="which images pruning turned",
        source='Piras et al. 2023, "Samples on Thin Ice" (arXiv 2310.08073); McNemar 1947',
        rule="reported: McNemar's p under one attack, the same for both; no `better` without p < 0.05",
        meaning="Images near the boundary flip either way; a gain that is no more than these flips is none.",
        advice="Where p >= 0.05, judge more images before calling one of the two better.",
        run=s3,
    ),
    Check(
        id="S4",
        title="removing dead channels changes nothing",
        source=OWN,
        rule=f"largest difference of the logits <= {ROUNDING} (times the largest logit, where that is above 1)",
        meaning="The shrunk network computes something else; speed and accuracy belong to different networks.",
        advice="Look at what a dead channel still adds: biases, and batch-norm's shift.",
        run=s4,
        refutes=True,
    ),
    Check(
        id="H1",
        title="the test images are new to the network",
        source=CARLINI,
        rule="training and validation positions are disjoint; no epoch is chosen without a validation part; test "
        f"images that are byte for byte in the training part: <= {100 * LEAKED:g} % (lower end of the 95 % interval). "
        "A few such copies stand in some public data sets, are no fault of the run, and move no rate by more.",
        meaning="The network was trained or chosen on images it is judged on.",
        advice="Set validation > 0, and remove the listed test images from the training part.",
        run=h1,
        refutes=True,
    ),
    Check(
        id="H2",
        title="how far the number carries",
        source=f"{CARLINI}; Wilson 1927",
        rule=f"reported: number of seeds ({SEEDS} or more make a mean and its spread) and the interval of the images",
        meaning="With one seed and few images, the order of close rows is chance.",
        advice="Train more seeds; raise evaluation.limit.",
        run=h2,
    ),
)
