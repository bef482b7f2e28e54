"""Checks I: indicators of attack failure. Do the attacks return what they found, and had they stopped climbing?

Pintor et al. 2022 (https://arxiv.org/abs/2106.09947).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack, Threat, exact_of
from attacks.ifgsm import IFGSM
from attacks.losses import LOSSES, margin
from robustbench_sparse.certificate.checks.binarization import climbs
from robustbench_sparse.certificate.checks.objective import fields_of
from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.judging.judge import inside

UNSTABLE, ROUGH, FINER = 0.1, 0.25, 8  # I1
RISE, LAST, MORE = 0.05, 10, 0.05  # I3
COSTLY = 2  # I2, I3: attacks of more passes than so many times the budget's steps are left out


def loss_does_not_jump(s: Subject) -> Finding:
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


LOSS_DOES_NOT_JUMP = Check(
    id="I1",
    title="the loss does not jump",
    source=(
        "Pintor et al. 2022, unstable predictions; radius 8/255; 10 %, scale and second radius are this project's"
    ),
    rule=(
        "The margin changes by at most 10 % on average at random points up to min(eps, 8/255) away, as a share of "
        "the larger of its own and its mean size over the images; or the change shrinks to a quarter or less "
        "at an eighth of the distance, as that of a steep but smooth network does."
    ),
    meaning="The loss is so rough that its gradient says little about its course: shattered gradients, or noise.",
    advice="Average gradients over random points, or attack without gradients (Square, NAttack).",
    run=loss_does_not_jump,
)


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
        out: Tensor = self.network(x.clone())
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


def adversarials_met_are_returned(s: Subject) -> Finding:
    """Adversarials that were met and not returned."""
    if s.stochastic:
        return skipped("the network is random: a point fools it in a share of the draws, not on one visit")
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    s.require_gradient()
    plans, left_out = _affordable(s, lambda a: a.bounded and not a.weak and not a.black_box and not a.own_set)
    silent: dict[str, Tensor] = {}
    for plan in plans:
        network, returned = recorded(s, *plan)
        met = s.judged(network.point, f"i2/{plan[0]}", rows)
        s.note(rows, network.point, met)
        silent[plan[0]] = rows[(met < 0.5) & (returned.correct > 0.5)]
    done = f"everything that {len(plans)} attacks sent through the network, on {len(rows)} images"
    measured: dict[str, Any] = {"silent_share": [len(r) / len(rows) for r in silent.values()]}
    measured["attacks"] = list(silent)
    where = sorted({i for found in silent.values() for i in s.indices(found)})
    measured["silent"] = where[:20]
    why = f"left out for their cost: {', '.join(left_out)}" if left_out else ""
    return ruled(len(where) == 0, done, measured, why)


def recorded(s: Subject, label: str, attack: Attack, threat: Threat) -> tuple[Recorder, Attacked]:
    """An attack of such a label on the few images with all that it sends through the network; made once."""

    def run() -> tuple[Recorder, Attacked]:
        rows = s.few
        x, y = s.x[rows], s.y[rows]
        network = Recorder(s.model, x, y, threat, LOSSES.get(getattr(attack, "loss", "margin"), margin))
        found = attack(network, x, y, threat, s.random(f"course/{label}", rows))
        candidate = threat.project(found.to(x.dtype), x)
        return network, Attacked(candidate, s.judged(candidate, f"course/{label}", rows))

    return s.once(f"course/{label}", run)


ADVERSARIALS_MET_ARE_RETURNED = Check(
    id="I2",
    title="what an attack met, it returns",
    source="Pintor et al. 2022, silent success",
    rule="No image for which an attack sent an adversarial of its ball through the network, and returned none.",
    meaning="The attack loses what it has found: the number is too high by that.",
    advice="Let the attack keep its best point (keep: best).",
    run=adversarials_met_are_returned,
    refutes=True,
)


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
        if int(getattr(attack, "restarts", 1)) > 1 and "restarts" in fields_of(attack):
            attack = replace(attack, restarts=1)  # type: ignore[call-arg]
        eot = 1 if s.stochastic else max(1, int(getattr(attack, "eot", 1)))
        if attack.passes / eot > COSTLY * max(s.budget.steps * s.budget.targets, 100):
            left_out.append(plan.label)
        else:
            out.append((plan.label, attack, plan.threat))
    return out, left_out


def attacks_have_stopped_climbing(s: Subject) -> Finding:
    """Attacks that stop while they still climb."""
    if s.stochastic:
        return skipped("the network is random: the loss on the way is that of single draws; see R3")
    plans, left_out = _affordable(s, lambda a: climbs(a) and _steps(a) > 1)
    own = [p for p in plans if not p[0].startswith("certificate/")]
    plans = own or plans
    rows = s.few
    if not plans or len(rows) == 0:
        return skipped(
            "no image is classified right" if plans else "no attack whose course could be looked at"
        )
    s.require_gradient()
    standing = rows[s.reported[rows] > 0.5]
    if len(standing) == 0:
        return skipped("the attacks left no image standing whose course could be looked at")
    courses: list[tuple[str, Attack, Threat, Recorder]] = []
    for label, attack, threat in plans:
        network, found = recorded(s, label, attack, threat)
        s.note(rows, found.candidate, found.correct)
        if inside(s.threat, found.candidate - s.x[rows]).all():
            standing = standing[torch.isin(standing, rows[found.correct > 0.5])]
        courses.append((label, attack, threat, network))
    why = f"left out for their cost: {', '.join(left_out)}" if left_out else ""
    if len(standing) == 0:
        return skipped("the attacks left no image standing whose course could be looked at")
    rises, gains = [], []
    here = torch.isin(rows, standing).nonzero().flatten().tolist()
    for label, attack, threat, network in courses:
        rises.append(math.fsum(_last_rise(network.course[i]) for i in here) / len(here))
        longer = _twice(attack, threat)
        gained = s.attack(longer, f"course/{label}", rows=standing, threat=threat)
        gains.append((gained.correct < 0.5).sum().item() / len(s.few))
    done = (
        f"the loss on the way of {len(courses)} attacks, and attacks twice as long, on {len(standing)} images that "
        f"they left standing"
    )
    measured: dict[str, Any] = {"attacks": [c[0] for c in courses], "rise": rises, "more_found_share": gains}
    fine = all(rise <= RISE or gain <= MORE for rise, gain in zip(rises, gains, strict=True))
    return ruled(fine, done, measured, why)


ATTACKS_HAVE_STOPPED_CLIMBING = Check(
    id="I3",
    title="the attacks have stopped climbing",
    source="Pintor et al. 2022, incomplete optimisation; the second condition is this project's",
    rule=(
        "On images left standing by all attacks, the largest loss so far rises in the last 10 passes by at most "
        "0.05 of its range over the run, on average; or twice the steps break at most 5 % more of the images."
    ),
    meaning="The attacks were stopped too early; with more steps the number would be lower.",
    advice="Double the steps until nothing changes.",
    run=attacks_have_stopped_climbing,
)


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


def stand_in_is_a_good_surrogate(s: Subject) -> Finding:
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
        fooled = s.network(candidate.clone()).argmax(1) != y
    judged = s.judged(candidate, "i4", rows)
    s.note(rows, candidate, judged)
    only = fooled & (judged > 0.5)
    direct = s.attack(attack, "i4", rows=rows, on=s.model)
    via = torch.where(only, direct.correct, judged)  # such images are attacked again on the network itself
    measured: dict[str, Any] = {
        "only_stand_in_share": only.double().mean().item(),
        "stand_in_acc": via.mean().item(),
        "direct_acc": direct.accuracy,
        "tau": s.tau(via, direct.correct),
    }
    if s.context.twin is not None:
        measured["twin_transfer_acc"] = s.attack(attack, "i4", rows=rows, on=s.context.twin[1]).accuracy
    done = (
        f"APGD on the margin, {attack.steps} steps, on the stand-in and on the network, on {len(rows)} images"
    )
    return ruled(not s.exceeds(via, direct.correct), done, measured)


STAND_IN_IS_A_GOOD_SURROGATE = Check(
    id="I4",
    title="the fast stand-in is a good surrogate",
    source="Pintor et al. 2022, transfer failure; the rule is this project's",
    rule=(
        "Attacked by way of the bfloat16 or compiled copy, and again where that alone is fooled, the network is "
        "not more accurate than attacked itself, by more than the paired interval's half width."
    ),
    meaning="The copy leads attacks astray, and the number is too high.",
    advice="Judge with precision: fp32 and without compiling.",
    run=stand_in_is_a_good_surrogate,
)


CHECKS: tuple[Check, ...] = (
    LOSS_DOES_NOT_JUMP,
    ADVERSARIALS_MET_ARE_RETURNED,
    ATTACKS_HAVE_STOPPED_CLIMBING,
    STAND_IN_IS_A_GOOD_SURROGATE,
)
