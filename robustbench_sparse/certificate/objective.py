"""Checks D, T, Z and I: do the attacks climb what they should, and do they return what they found?

Croce & Hein 2020 (AutoAttack's warnings on dynamic defenses and on the number of classes), Tramer et al. 2020
(https://arxiv.org/abs/2002.08347), Zimmermann et al. 2022 (https://arxiv.org/abs/2206.13991), Pintor et al. 2022
(https://arxiv.org/abs/2106.09947).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack, Threat, exact_of, is_stochastic, noise_from, per_image
from attacks.ifgsm import IFGSM
from attacks.iterate import random_start, steepest
from attacks.losses import LOSSES, cross_entropy, margin
from attacks.pgd import PGD
from attacks.random_search import RandomSearch
from robustbench_sparse.certificate.check import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.judge import inside
from robustbench_sparse.plan import AttackPlan
from robustbench_sparse.stats import wilson

AGREEMENT = 0.9  # T1: rank correlation
RANDOM_POINTS, SEGMENT_POINTS, FEWEST_POINTS = 10, 20, 5  # T1: per image
INNER, CLOSE, CLOSE_RANDOM = 0.95, 0.999, 0.5  # Z1: radius of the inner points; where the decision lies
PASSES = 2  # Z1: over which a random network's features of an inner point are averaged
FOUND, BY_CHANCE = 0.95, 0.5  # Z1: shares of images
SWEEPS = 1000  # Z1: corrections of a separating plane at most
UNSTABLE, ROUGH, FINER = 0.1, 0.25, 8  # I1
RISE, LAST, MORE = 0.05, 10, 0.05  # I3
COSTLY = 2  # I2, I3: attacks of more passes than so many times the budget's steps are left out


# D: what the network does in its forward pass, and which losses make sense -------------------------------


def d1(s: Subject) -> Finding:
    """Gradients taken inside the forward pass."""
    if len(s) == 0:
        return skipped("no images")
    x, seen = s.x[: s.batch_size], set[str]()
    random = s.random("d1", torch.arange(len(x)))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), noise_from(s.model, random), _watched(seen):
            s.model(x)
    done = f"two forward passes of {len(x)} images, without and with gradients, watched for calls of autograd"
    return ruled(not seen, done, {"called": sorted(seen)})


@contextlib.contextmanager
def _watched(seen: set[str]) -> Iterator[None]:
    """Note in ``seen`` which functions that compute gradients are called within the block.

    Told by their code, not by their names in torch's modules: a network may have imported them under another.
    """
    wanted: dict[CodeType, str] = {}
    for name, function in (
        ("torch.autograd.grad", torch.autograd.grad),
        ("torch.autograd.backward", torch.autograd.backward),
        ("Tensor.backward", Tensor.backward),
    ):
        wanted[inspect.unwrap(function).__code__] = name
    before = sys.getprofile()

    def look(frame: FrameType, event: Any, arg: Any) -> None:
        if event == "call" and frame.f_code in wanted:
            seen.add(wanted[frame.f_code])
        if before is not None:
            before(frame, event, arg)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


def d2(s: Subject) -> Finding:
    """Losses that need more classes than there are."""
    attacks = [(plan.label, plan.attack) for plan in s.context.plans]
    attacks += [(f"certificate/{name}", attack) for name, attack in s.battery()]
    invalid, clipped = [], []
    for label, attack in attacks:
        loss = getattr(attack, "loss", "")
        if s.classes < {"dlr": 3, "dlr_targeted": 4}.get(loss, 2):
            invalid.append(label)
        targeted = loss == "dlr_targeted" or "loss" not in _fields(attack)
        if targeted and int(getattr(attack, "targets", 0)) + 1 > s.classes:
            clipped.append(label)
    why = f"more targets than wrong classes, of which all are tried: {', '.join(clipped)}" if clipped else ""
    done = f"losses and targets of {len(attacks)} attacks compared with {s.classes} classes"
    return ruled(
        not invalid, done, {"classes": s.classes, "invalid": invalid, "targets_clipped": clipped}, why
    )


def _fields(attack: Attack) -> set[str]:
    return set(getattr(attack, "__dataclass_fields__", {}))


# T: does the loss rank images as their margins do? --------------------------------------------------------


def t1(s: Subject) -> Finding:
    """The cross-entropy against the margin.

    Image by image, since that is where an attack climbs: over all images together, easy and hard ones alone would
    make a high correlation. Only points classified right count, because beyond the boundary a saturated
    cross-entropy grows again. Half of them lie on the segment to the end of a short attack on the margin: they
    reach from the image to the boundary, and a network that is merely confident is not tied on all of them. The
    median of the images, as on a few that many classes compete for an honest cross-entropy turns from the margin.
    """
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    x, y = s.x[rows], s.y[rows]
    threat = _finite(s.threat, x)
    end = s.attack(PGD(steps=10, loss="margin", eot=s.eot), "t1/end", rows=rows, threat=threat).candidate
    random, values = s.random("t1", rows), []
    for i in range(RANDOM_POINTS + SEGMENT_POINTS):
        t = (i - RANDOM_POINTS) / (SEGMENT_POINTS - 1)
        point = random_start(x, threat, random) if i < RANDOM_POINTS else x + t * (end - x)
        logits = s.logits(point, random)
        values.append(torch.stack([cross_entropy(logits, y), margin(logits, y)]))
    ce, gap = torch.stack(values, 2).unbind(0)  # (R, P) each
    agree = []
    for i in range(len(rows)):
        right = gap[i] < 0
        if int(right.sum()) >= FEWEST_POINTS:
            agree.append(rank_correlation(ce[i][right], gap[i][right]))
    if not agree:
        return skipped(f"no image has {FEWEST_POINTS} points that are classified right")
    middle = statistics.median(agree)
    done = (
        f"cross-entropy and margin at {RANDOM_POINTS} random points and {SEGMENT_POINTS} on the way to the end of a "
        f"10-step attack, for each of {len(agree)} images"
    )
    return ruled(middle > AGREEMENT, done, {"rank_correlation": middle, "lowest": min(agree)})


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors (P,), ties at their mean rank; 0 where one of them is constant."""

    def ranks(v: Tensor) -> Tensor:
        below = (v[None] < v[:, None]).sum(1)
        equal = (v[None] == v[:, None]).sum(1)
        out = below + (equal + 1) / 2
        return (out - out.mean()).double()

    a, b = ranks(first), ranks(second)
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def _finite(threat: Threat, x: Tensor) -> Threat:
    """The threat with a radius that random points can be drawn from: the box's, where it has none."""
    if math.isfinite(threat.eps):
        return threat
    return replace(threat, eps=1.0 if threat.norm == "linf" else math.sqrt(x[0].numel()))


# Z: the active test --------------------------------------------------------------------------------------


class Heads(nn.Module):
    """A network whose last layer is replaced by one binary head for each image of a batch.

    Args:
        network: the network.
        layers: its linear layers whose inputs, side by side, are the features.
        weight: of the heads, (R, D); one row serves images of any number.
        bias: (R,).

    Attributes:
        stochastic: said to be so, a network keeps every image in an attack's batch, and the rows stay in order.
    """

    def __init__(self, network: nn.Module, layers: list[str], weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.network, self.layers, self.weight, self.bias = network, layers, weight, bias
        self.stochastic = len(weight) > 1 or is_stochastic(network)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (R, C, H, W) -> logits (R, 2); class 1 is the adversarial one."""
        features = _features(self.network, self.layers, x).double()
        value = ((features * self.weight).sum(1) + self.bias).to(x.dtype)
        return torch.stack([torch.zeros_like(value), value], 1)


def _features(network: nn.Module, layers: list[str], x: Tensor) -> Tensor:
    """Inputs of some layers, flattened and side by side, (B, D)."""
    taken: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> None:
        taken.append(args[0].flatten(1))

    handles = [network.get_submodule(name).register_forward_pre_hook(take) for name in layers]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(taken, 1)


def _last_layers(s: Subject) -> list[str]:
    """Linear layers that give one value for each class and image; several in an ensemble."""
    found: list[str] = []
    handles = []
    for name, module in s.model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == s.classes:

            def note(_: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                if out.shape == (1, s.classes) and name not in found:
                    found.append(name)

            handles.append(module.register_forward_hook(note))
    try:
        s.logits(s.x[:1], s.random("z1/layers", torch.zeros(1, dtype=torch.long)))
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class _Setup:
    """Heads (R, D), (R,) of the images for which a head was found, and where those stand, (R,)."""

    weight: Tensor
    bias: Tensor
    ok: Tensor


def z1(s: Subject) -> Finding:
    """Adversarials that are known to exist."""
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    layers = _last_layers(s)
    if not layers:
        return skipped(f"no linear layer (nn.Linear) with {s.classes} outputs was run as the last one")
    threat = _finite(s.threat, s.x)
    parts = [(part, _heads(s, layers, part, threat)) for part in torch.split(rows, min(s.batch_size, 32))]
    label, attack = _under_test(s)
    found, chance, failed = [], [], []
    for part, setup in parts:
        ok = setup.ok.nonzero().flatten()
        failed += s.indices(part[~setup.ok])
        if len(ok) == 0:
            continue
        found.append(_attack_heads(s, layers, setup, ok, part, attack, threat, label))
        chance.append(_by_chance(s, layers, setup, ok, part, threat))
    done = (
        f"{label} on networks with a new binary head for each of {len(rows)} images, which tells one point of the "
        f"ball's surface from {s.budget.inner_points} inside"
    )
    setups = sum(len(f) for f in found)
    measured: dict[str, Any] = {"set_up": setups, "set_up_failed": failed[:20], "attack": label}
    if setups < len(rows) / 2:
        return Finding(
            status="reported",
            done=done,
            measured=measured,
            why="for most images no head tells the point on the surface from those inside: the test says nothing",
        )
    hit, lucky = torch.cat(found).double().mean().item(), torch.cat(chance).double().mean().item()
    measured |= {"found_share": hit, "random_found_share": lucky}
    if lucky > BY_CHANCE:
        why = "a random search finds most of them, too: the test says nothing"
        return Finding(status="reported", done=done, measured=measured, why=why)
    # A share of few images: fewer than wanted is a fault only where it is more than chance.
    _, high = wilson(torch.cat(found).sum().item(), setups)
    return ruled(high >= FOUND, done, measured)


def _under_test(s: Subject) -> tuple[str, Attack]:
    """The benchmark's longest gradient attack in the certificate's ball, or the battery's first, for two classes."""
    mine = [
        (plan.label, plan.attack)
        for plan in s.context.plans
        if _climbs(plan.attack) and plan.threat.norm == s.threat.norm and plan.threat.eps == s.threat.eps
    ]
    label, attack = max(mine, key=lambda a: a[1].passes) if mine else s.battery()[0]
    eot = getattr(attack, "eot", 1) if s.stochastic else 1
    assert isinstance(attack, IFGSM | APGD)
    if isinstance(attack, IFGSM):
        return label, replace(attack, eot=eot, early_stop=None)
    loss = attack.loss if attack.loss in ("ce", "margin") else "margin"
    return label, replace(attack, eot=eot, loss=loss)


def _climbs(attack: Attack) -> bool:
    """Whether it is an untargeted path of gradient steps."""
    return isinstance(attack, IFGSM | APGD) and attack.target == "none" and not attack.weak


def _heads(s: Subject, layers: list[str], rows: Tensor, threat: Threat) -> _Setup:
    """A head for each image: the plane of the widest margin between its inner points and one on the surface."""
    x, random = s.x[rows], s.random("z1/points", rows)
    surface = _on_surface(x, threat, random.normal(x))
    inner = [x]
    small = replace(threat, eps=INNER * threat.eps)
    inner += [random_start(x, small, random) for _ in range(s.budget.inner_points - 1)]
    with torch.no_grad(), noise_from(s.model, random if s.stochastic else None):
        inside_ = torch.stack(
            [_mean_features(s, layers, point, PASSES if s.stochastic else 1) for point in inner], 1
        )
        outside = _mean_features(s, layers, surface, s.draws)
    weight, low, high = _plane(inside_.double(), outside.double())
    close = CLOSE_RANDOM if s.stochastic else CLOSE
    gap = (high - low).clamp_min(1e-300)
    bias = -(low + close * (high - low)) / gap
    heads = Heads(s.model, layers, weight / gap[:, None], bias)
    ok = (
        (high > low)
        & (_positive(s, heads, surface, "z1/set-up", rows) > 0.5)
        & (_positive(s, heads, x, "z1/set-up", rows) < 0.5)
    )
    return _Setup(heads.weight, heads.bias, ok)


def _mean_features(s: Subject, layers: list[str], x: Tensor, passes: int) -> Tensor:
    total = _features(s.model, layers, x).double()
    for _ in range(passes - 1):
        total = total + _features(s.model, layers, x).double()
    return total / passes


def _on_surface(x: Tensor, threat: Threat, noise: Tensor) -> Tensor:
    """A point on the surface of the ball, as far as the box lets it: a corner of the cube, or a random direction."""
    if threat.norm == "linf":
        low, high = threat.bounds(x)
        return torch.where(noise < 0, low, high)
    point = x + threat.eps * steepest(noise, "l2")
    for _ in range(10):  # clipping to the box has shortened it
        delta = point.clamp(0, 1) - x
        point = x + delta * per_image(threat.eps / threat.size(delta).clamp_min(1e-12), delta)
    return threat.project(point, x)


def _plane(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The direction in which one point is farthest ahead of many others.

    It is the shortest vector of the convex hull of their differences, found by moving towards the worst of them,
    with the best length of step (Gilbert 1966, "An iterative procedure for computing the minimum of a quadratic form
    on a convex set").

    Args:
        inner: (R, N, D).
        outer: (R, D).

    Returns:
        Directions (R, D), the largest projection of the inner points (R,) and that of the outer one (R,).
    """
    difference = outer[:, None] - inner
    difference = difference / difference.norm(dim=2).amax(1).clamp_min(1e-300)[:, None, None]
    z = difference.mean(1)
    for _ in range(SWEEPS):
        ahead = (difference @ z[:, :, None])[:, :, 0]
        worst = ahead.argmin(1)
        if bool((ahead.amin(1) >= 0.9 * (z * z).sum(1)).all()):
            break
        step = difference[torch.arange(len(z), device=z.device), worst] - z
        t = (-(z * step).sum(1) / (step * step).sum(1).clamp_min(1e-300)).clamp(0, 1)
        z = z + t[:, None] * step
    return z, (inner @ z[:, :, None])[:, :, 0].amax(1), (outer * z).sum(1)


def _positive(s: Subject, heads: Heads, x: Tensor, name: str, rows: Tensor) -> Tensor:
    """Share of draws in which images pass for adversarial, (R,)."""
    random = s.random(name, rows)
    with torch.no_grad(), noise_from(s.model, random if s.stochastic else None):
        return torch.stack([heads(x)[:, 1] > 0 for _ in range(s.draws)]).double().mean(0)


def _attack_heads(
    s: Subject,
    layers: list[str],
    setup: _Setup,
    ok: Tensor,
    rows: Tensor,
    attack: Attack,
    threat: Threat,
    label: str,
) -> Tensor:
    """Whether the attack finds the adversarial that is there, bool (R,); restarts only where the first path fails."""
    found = torch.zeros(len(ok), dtype=torch.bool, device=s.x.device)
    restarts = int(getattr(attack, "restarts", 1))
    tries = [replace(attack, restarts=1), attack] if restarts > 1 else [attack]  # type: ignore[call-arg]
    for now in tries:
        left = (~found).nonzero().flatten()
        if len(left) == 0:
            break
        chosen = ok[left]
        heads = Heads(s.model, layers, setup.weight[chosen], setup.bias[chosen])
        mine = rows[chosen]
        x = s.x[mine]
        candidate = now(heads, x, torch.zeros_like(mine), threat, s.random(f"z1/{label}", mine))
        candidate = threat.project(candidate.to(x.dtype), x)
        found[left] = _positive(s, heads, candidate, "z1/judge", mine) > 0.5
    return found


def _by_chance(
    s: Subject, layers: list[str], setup: _Setup, ok: Tensor, rows: Tensor, threat: Threat
) -> Tensor:
    """Whether as many random points as were inside find it, bool (R,)."""
    search, found = RandomSearch(queries=max(3, s.budget.inner_points)), []
    for i in ok.tolist():
        heads = Heads(s.model, layers, setup.weight[i : i + 1], setup.bias[i : i + 1])
        row = rows[i : i + 1]
        point = search(heads, s.x[row], torch.zeros_like(row), threat, s.random("z1/chance", row))
        found.append(_positive(s, heads, point, "z1/judge", row) > 0.5)
    return torch.cat(found)


# I: indicators of attack failure --------------------------------------------------------------------------


def i1(s: Subject) -> Finding:
    """A loss that jumps."""
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    x, y = s.x[rows], s.y[rows]
    reach = s.threat.eps if s.threat.norm == "linf" else s.threat.eps / math.sqrt(x[0].numel())
    radius = min(reach, 8 / 255)

    def loss(point: Tensor, draw: int) -> Tensor:
        # A random network has the same noise at every point: what is measured is the landscape, not the noise.
        return margin(s.logits(point, s.random(f"i1/noise/{draw}", rows)), y).double()

    count, here = 30, loss(x, 0)
    scale = torch.maximum(here.abs(), here.abs().mean()).clamp_min(1e-12)
    random, change = s.random("i1", rows), []
    for _ in range(count):
        u = 2 * random.uniform(x) - 1
        at = [loss((x + r * u).clamp(0, 1), 0) for r in (radius, radius / FINER)]
        change.append(torch.stack([(a - here).abs() / scale for a in at]))
    near, nearest = (c.item() for c in torch.stack(change).mean((0, 2)))
    ratio = nearest / near if near > 0 else 0.0
    done = (
        f"the margin at {count} random points around each of {len(rows)} images, at most {radius:.4g} away per pixel, "
        f"and at points {FINER} times nearer"
    )
    measured = {"relative_change": near, "relative_change_nearer": nearest, "ratio": ratio, "radius": radius}
    return ruled(near <= UNSTABLE or ratio <= ROUGH, done, measured)


class Recorder(nn.Module):
    """A network that keeps what an attack sends through it.

    A point belongs to the nearest clean image: attacks drop images from their batch and send them in any order.

    Args:
        network: the network.
        x, y: clean images (R, C, H, W) and labels (R,).
        threat: whose ball adversarials must lie in.
        loss: maps logits and labels to the loss whose course is kept.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.network, self.x, self.y, self.threat, self.loss = network, x, y, threat, loss
        self.point, self.margin = x.clone(), [-math.inf] * len(x)
        self.course: list[list[float]] = [[] for _ in range(len(x))]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The network's own logits."""
        out: Tensor = self.network(x)
        with torch.no_grad():
            self._keep(x.detach(), out.detach())
        return out

    def _keep(self, x: Tensor, logits: Tensor) -> None:
        owner = torch.cdist(x.flatten(1).float(), self.x.flatten(1).float()).argmin(1)
        y = self.y[owner]
        gap, loss = margin(logits, y), self.loss(logits, y)
        legal = inside(self.threat, x - self.x[owner]) & gap.isfinite()
        seen = zip(owner.tolist(), gap.tolist(), loss.tolist(), legal.tolist(), strict=True)
        for b, (i, value, climbed, ok) in enumerate(seen):
            self.course[i].append(climbed)
            if ok and value > self.margin[i]:
                self.margin[i], self.point[i] = value, x[b].to(self.point.dtype)


def i2(s: Subject) -> Finding:
    """Adversarials that were met and not returned."""
    if s.stochastic:
        return skipped("the network is random: a point fools it in a share of the draws, not on one visit")
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    plans, left_out = _affordable(s, lambda a: a.bounded and not a.weak and not a.black_box and not a.own_set)
    silent: dict[str, Tensor] = {}
    for label, attack, threat in plans:
        x, y = s.x[rows], s.y[rows]
        network = Recorder(s.model, x, y, threat, margin)
        candidate = threat.project(
            attack(network, x, y, threat, s.random(f"i2/{label}", rows)).to(x.dtype), x
        )
        returned = s.judged(candidate, f"i2/{label}", rows)
        met = s.judged(network.point, f"i2/{label}", rows)
        s.note(rows, network.point, met)
        silent[label] = rows[(met < 0.5) & (returned > 0.5)]
    done = f"everything that {len(plans)} attacks sent through the network, on {len(rows)} images"
    measured: dict[str, Any] = {"silent_share": [len(r) / len(rows) for r in silent.values()]}
    measured["attacks"] = list(silent)
    where = sorted({i for found in silent.values() for i in s.indices(found)})
    measured["silent"] = where[:20]
    why = f"left out for their cost: {', '.join(left_out)}" if left_out else ""
    return ruled(len(where) == 0, done, measured, why)


def _affordable(
    s: Subject, wanted: Callable[[Attack], bool]
) -> tuple[list[tuple[str, Attack, Threat]], list[str]]:
    """The benchmark's attacks of a kind, one path each, then the battery; and the labels of those too long."""
    plans = [AttackPlan(f"certificate/{name}", "", attack, s.threat) for name, attack in s.battery()]
    out, left_out = [], []
    for plan in [*s.context.plans, *plans]:
        attack = plan.attack
        if not wanted(attack) or plan.threat.eps == 0:
            continue
        if int(getattr(attack, "restarts", 1)) > 1 and "restarts" in _fields(attack):
            attack = replace(attack, restarts=1)  # type: ignore[call-arg]
        eot = 1 if s.stochastic else max(1, int(getattr(attack, "eot", 1)))
        if attack.passes / eot > COSTLY * max(s.budget.steps * s.budget.targets, 100):
            left_out.append(plan.label)
        else:
            out.append((plan.label, attack, plan.threat))
    return out, left_out


def i3(s: Subject) -> Finding:
    """Attacks that stop while they still climb."""
    if s.stochastic:
        return skipped("the network is random: the loss on the way is that of single draws; see R3")
    plans, left_out = _affordable(s, lambda a: _climbs(a) and _steps(a) > 1)
    own = [p for p in plans if not p[0].startswith("certificate/")]
    plans = own or plans
    rows = s.few
    if not plans or len(rows) == 0:
        return skipped(
            "no image is classified right" if plans else "no attack whose course could be looked at"
        )
    rows = rows[s.reported[rows] > 0.5]
    courses: list[tuple[str, Attack, Threat, Recorder]] = []
    standing = rows
    for label, attack, threat in plans:
        x, y = s.x[rows], s.y[rows]
        loss = LOSSES.get(getattr(attack, "loss", "margin"), margin)
        network = Recorder(s.model, x, y, threat, loss)
        random = s.random(f"i3/{label}", rows)
        candidate = threat.project(attack(network, x, y, threat, random).to(x.dtype), x)
        right = s.judged(candidate, f"i3/{label}", rows)
        s.note(rows, candidate, right)
        if inside(s.threat, candidate - x).all():
            standing = standing[torch.isin(standing, rows[right > 0.5])]
        courses.append((label, attack, threat, network))
    why = f"left out for their cost: {', '.join(left_out)}" if left_out else ""
    if len(standing) == 0:
        return skipped("the attacks left no image standing whose course could be looked at")
    rises, gains = [], []
    for label, attack, threat, network in courses:
        here = [i for i, r in enumerate(rows.tolist()) if r in set(standing.tolist())]
        rises.append(math.fsum(_last_rise(network.course[i]) for i in here) / len(here))
        longer = _twice(attack, threat)
        gained = s.attack(longer, f"i3/{label}", rows=standing, threat=threat)
        gains.append((gained.right < 0.5).sum().item() / len(s.few))
    done = (
        f"the loss on the way of {len(courses)} attacks, and attacks twice as long, on {len(standing)} images that "
        f"they left standing"
    )
    measured: dict[str, Any] = {"attacks": [c[0] for c in courses], "rise": rises, "more_found_share": gains}
    fine = all(rise <= RISE or gain <= MORE for rise, gain in zip(rises, gains, strict=True))
    return ruled(fine, done, measured, why)


def _steps(attack: Attack) -> int:
    return int(getattr(attack, "steps", 1))


def _twice(attack: Attack, threat: Threat) -> Attack:
    """The same attack going on for as many steps again; on PGD's kind with the same length of step."""
    assert isinstance(attack, IFGSM | APGD)
    if isinstance(attack, IFGSM) and attack.step_size is None:
        return replace(attack, steps=2 * attack.steps, step_size=2.5 * threat.eps / attack.steps)
    return replace(attack, steps=2 * attack.steps)


def _last_rise(course: list[float]) -> float:
    """How far the largest loss so far rose in the last steps, as a share of the loss's range over the run."""
    finite = [v for v in course if math.isfinite(v)]
    if len(finite) < 2 or max(finite) == min(finite):
        return 0.0
    before = max(finite[: max(1, len(finite) - LAST)])
    return (max(finite) - before) / (max(finite) - min(finite))


def i4(s: Subject) -> Finding:
    """What fools only the stand-in."""
    if s.network is s.model or exact_of(s.network) is None:
        return skipped("nothing stands in: attacks climb on the network itself")
    if s.stochastic:
        return skipped("the network is random: no single verdict of the stand-in can be compared")
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    attack = APGD(steps=s.budget.steps, loss="margin")
    x, y = s.x[rows], s.y[rows]
    candidate = s.threat.project(attack(s.network, x, y, s.threat, s.random("i4", rows)).to(x.dtype), x)
    with torch.no_grad():
        fooled = s.network(candidate).argmax(1) != y
    only = fooled & (s.judged(candidate, "i4", rows) > 0.5)
    via = s.attack(attack, "i4", rows=rows)
    direct = s.attack(attack, "i4", rows=rows, on=s.model)
    measured: dict[str, Any] = {
        "only_stand_in_share": only.double().mean().item(),
        "stand_in_acc": via.accuracy,
        "direct_acc": direct.accuracy,
        "tau": s.tau(via.right, direct.right),
    }
    if s.context.twin is not None:
        measured["twin_transfer_acc"] = s.attack(attack, "i4", rows=rows, on=s.context.twin[1]).accuracy
    done = (
        f"APGD on the margin, {attack.steps} steps, on the stand-in and on the network, on {len(rows)} images"
    )
    return ruled(not s.exceeds(via.right, direct.right), done, measured)


ADVICE_LOSS = (
    "Attack with the margin and with DLR, on the values before a last squashing layer, in float64 if need be."
)

CHECKS: tuple[Check, ...] = (
    Check(
        id="D1",
        title="no gradients inside the forward pass",
        source="AutoAttack's check for dynamic defenses (Croce & Hein 2020)",
        rule="torch.autograd.grad, torch.autograd.backward and Tensor.backward are not called while the network runs.",
        meaning="The network optimises something at test time. Attacks that take it for a fixed function go wrong.",
        advice="Write an attack that takes the optimisation into account, or switch it off and judge what is left.",
        run=d1,
    ),
    Check(
        id="D2",
        title="losses that the number of classes allows",
        source="AutoAttack's check of the number of classes (Croce & Hein 2020)",
        rule=(
            "DLR has at least 3 classes, targeted DLR at least 4. Attacks with more targets than wrong classes are "
            "named; they try all there are."
        ),
        meaning="An attack's loss is not defined for so few classes, and its outcome means nothing.",
        advice="Set its loss to margin.",
        run=d2,
    ),
    Check(
        id="T1",
        title="A higher loss means closer to misclassified",
        source="Tramer et al. 2020 (consistent losses); figure and threshold are this project's",
        rule=(
            "Spearman's correlation of cross-entropy and margin over points of the ball that are classified right, "
            "is above 0.9 in the median of the images. An image on which either is constant counts 0."
        ),
        meaning="Climbing the cross-entropy does not lead to an error: it is saturated, or outputs are bounded.",
        advice=ADVICE_LOSS,
        run=t1,
    ),
    Check(
        id="Z1",
        title="adversarials that are known to exist are found",
        source="Zimmermann, Brendel, Tramer, Carlini 2022, the binarization test; the two shares are this project's",
        rule=(
            "With a last layer that tells one point on the surface of an image's ball from points within 0.95 eps, the "
            "decision at 0.999 of the way to the former (halfway for a random network), the attack finds an "
            "adversarial on at least 95 % of the images (its 95 % interval reaches that). It says nothing where random "
            "search finds more than half."
        ),
        meaning="The attack cannot judge this network: it misses adversarials that are certain to be there.",
        advice="Use a stronger or adapted attack, until it passes this test.",
        run=z1,
    ),
    Check(
        id="I1",
        title="the loss does not jump",
        source="Pintor et al. 2022, unstable predictions; radius 8/255; scale and second radius are this project's",
        rule=(
            "The margin changes by at most 10 % on average at random points up to min(eps, 8/255) away, as a share of "
            "the larger of its own and its mean size over the images; or the change shrinks to a quarter or less "
            "at an eighth of the distance, as that of a steep but smooth network does."
        ),
        meaning="The loss is so rough that its gradient says little about its course: shattered gradients, or noise.",
        advice="Average gradients over random points, or attack without gradients (Square, NAttack).",
        run=i1,
    ),
    Check(
        id="I2",
        title="what an attack met, it returns",
        source="Pintor et al. 2022, silent success",
        rule="No image for which an attack sent an adversarial of its ball through the network, and returned none.",
        meaning="The attack loses what it has found: the number is too high by that.",
        advice="Let the attack keep its best point (keep: best).",
        run=i2,
        refutes=True,
    ),
    Check(
        id="I3",
        title="the attacks have stopped climbing",
        source="Pintor et al. 2022, incomplete optimisation; the second condition is this project's",
        rule=(
            "On images left standing by all attacks, the largest loss so far rises in the last 10 passes by at most "
            "0.05 of its range over the run, on average; or twice the steps break at most 5 % more of the images."
        ),
        meaning="The attacks were stopped too early; with more steps the number would be lower.",
        advice="Double the steps until nothing changes.",
        run=i3,
    ),
    Check(
        id="I4",
        title="the fast stand-in is a good surrogate",
        source="Pintor et al. 2022, transfer failure; the rule is this project's",
        rule=(
            "Attacked by way of the bfloat16 or compiled copy, and again where that alone is fooled, the network is "
            "not more accurate than attacked itself, by more than the paired interval's half width."
        ),
        meaning="The copy leads attacks astray, and the number is too high.",
        advice="Judge with precision: fp32 and without compiling.",
        run=i4,
    ),
)
