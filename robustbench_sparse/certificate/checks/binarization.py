"""Check Z1, the active test: does the attack find adversarials that are known to exist?

Zimmermann et al. 2022 (https://arxiv.org/abs/2206.13991).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack, Threat, is_stochastic, noise_from, per_image
from attacks.ifgsm import IFGSM
from attacks.iterate import random_start, steepest
from attacks.random_search import RandomSearch
from robustbench_sparse.certificate.checks.objective import with_radius
from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.intervals import wilson

INNER, CLOSE, CLOSE_RANDOM = 0.95, 0.999, 0.5  # radius of the inner points; where the decision lies
PASSES = 2  # over which a random network's features of an inner point are averaged
FOUND, BY_CHANCE = 0.95, 0.5  # shares of images
SWEEPS = 1000  # corrections of a separating plane at most


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
        # Several passes of a random network may come as one batch: all images, and all of them again.
        times = len(features) // len(self.weight) if len(self.weight) > 1 else 1
        weight, bias = self.weight.repeat(times, 1), self.bias.repeat(times)
        value = ((features * weight).sum(1) + bias).to(x.dtype)
        return torch.stack([torch.zeros_like(value), value], 1)


def _features(network: nn.Module, layers: list[str], x: Tensor) -> Tensor:
    """Inputs of some layers, flattened and side by side, (B, D)."""
    taken: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> None:
        taken.append(args[0].flatten(1).clone())

    handles = [network.get_submodule(name).register_forward_pre_hook(take) for name in layers]
    try:
        network(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    if len({len(t) for t in taken}) != 1:
        raise _NotRun
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


def _are_run_on_batches(s: Subject, layers: list[str], rows: Tensor) -> bool:
    """Whether the layers see one vector for each image of a batch: some treat a single image in another way."""
    random = s.random("z1/layers", rows)
    try:
        with torch.no_grad(), noise_from(s.model, random if s.stochastic else None):
            return len(_features(s.model, layers, s.x[rows])) == len(rows)
    except _NotRun:
        return False


class _NotRun(Exception):
    """No layer was run in a pass, or they saw different numbers of images."""


@dataclass(frozen=True)
class _Setup:
    """Heads (R, D), (R,) of the images for which a head was found, and where those stand, (R,)."""

    weight: Tensor
    bias: Tensor
    ok: Tensor


def planted_adversarials_are_found(s: Subject) -> Finding:
    """Adversarials that are known to exist."""
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    layers = _last_layers(s)
    if not layers:
        return skipped(f"no linear layer (nn.Linear) with {s.classes} outputs was run as the last one")
    threat = with_radius(s.threat, s.x)
    s.require_gradient()
    if not _are_run_on_batches(s, layers, rows[:2]):
        return skipped("the last layer is not run once for every batch: no head can stand in its place")
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


PLANTED_ADVERSARIALS_ARE_FOUND = Check(
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
    run=planted_adversarials_are_found,
)


def _under_test(s: Subject) -> tuple[str, Attack]:
    """The benchmark's longest gradient attack in the certificate's ball, or the battery's first, for two classes."""
    mine = [
        (plan.label, plan.attack)
        for plan in s.context.plans
        if climbs(plan.attack) and plan.threat.norm == s.threat.norm and plan.threat.eps == s.threat.eps
    ]
    label, attack = max(mine, key=lambda a: a[1].passes) if mine else s.battery()[0]
    eot = getattr(attack, "eot", 1) if s.stochastic else 1
    assert isinstance(attack, IFGSM | APGD)
    if isinstance(attack, IFGSM):
        return label, replace(attack, eot=eot, early_stop=None)
    loss = attack.loss if attack.loss in ("ce", "margin") else "margin"
    return label, replace(attack, eot=eot, loss=loss)


def climbs(attack: Attack) -> bool:
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
        remaining = (~found).nonzero().flatten()
        if len(remaining) == 0:
            break
        chosen = ok[remaining]
        heads = Heads(s.model, layers, setup.weight[chosen], setup.bias[chosen])
        mine = rows[chosen]
        x = s.x[mine]
        candidate = now(heads, x, torch.zeros_like(mine), threat, s.random(f"z1/{label}", mine))
        candidate = threat.project(candidate.to(x.dtype), x)
        found[remaining] = _positive(s, heads, candidate, "z1/judge", mine) > 0.5
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


CHECKS: tuple[Check, ...] = (PLANTED_ADVERSARIALS_ARE_FOUND,)
