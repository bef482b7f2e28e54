"""Checks D and T: does the forward pass stay a fixed function, and do the attacks climb what they should?

Croce & Hein 2020 (AutoAttack's warnings on dynamic defenses and on the number of classes), Tramer et al. 2020
(https://arxiv.org/abs/2002.08347).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from attacks.base import Attack, Threat, noise_from
from attacks.iterate import random_start
from attacks.losses import margin
from attacks.pgd import PGD
from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Subject

AGREEMENT = 0.9  # T1: rank correlation
RANDOM_POINTS, SEGMENT_POINTS, FEWEST_POINTS = 10, 20, 5  # T1: per image


# D: what the network does in its forward pass, and which losses make sense -------------------------------


def forward_pass_takes_no_gradients(s: Subject) -> Finding:
    """Gradients taken inside the forward pass."""
    if len(s) == 0:
        return skipped("no images")
    x, seen = s.x[: s.batch_size], set[str]()
    random = s.random("d1", torch.arange(len(x)))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), noise_from(s.model, random), _watched(seen):
            s.model(x.clone())
    done = f"two forward passes of {len(x)} images, without and with gradients, watched for calls of autograd"
    return ruled(not seen, done, {"called": sorted(seen)})


FORWARD_PASS_TAKES_NO_GRADIENTS = Check(
    id="D1",
    title="no gradients inside the forward pass",
    source="AutoAttack's check for dynamic defenses (Croce & Hein 2020)",
    rule="torch.autograd.grad, torch.autograd.backward and Tensor.backward are not called while the network runs.",
    meaning="The network optimises something at test time. Attacks that take it for a fixed function go wrong.",
    advice="Write an attack that takes the optimisation into account, or switch it off and judge what is left.",
    run=forward_pass_takes_no_gradients,
)


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


def losses_fit_the_classes(s: Subject) -> Finding:
    """Losses that need more classes than there are."""
    attacks = [(plan.label, plan.attack) for plan in s.context.plans]
    attacks += [(f"certificate/{name}", attack) for name, attack in s.battery()]
    invalid, clipped = [], []
    for label, attack in attacks:
        loss = getattr(attack, "loss", "")
        if s.classes < {"dlr": 3, "dlr_targeted": 4}.get(loss, 2):
            invalid.append(label)
        targeted = loss == "dlr_targeted" or "loss" not in fields_of(attack)
        if targeted and int(getattr(attack, "targets", 0)) + 1 > s.classes:
            clipped.append(label)
    why = f"more targets than wrong classes, of which all are tried: {', '.join(clipped)}" if clipped else ""
    done = f"losses and targets of {len(attacks)} attacks compared with {s.classes} classes"
    return ruled(
        not invalid, done, {"classes": s.classes, "invalid": invalid, "targets_clipped": clipped}, why
    )


LOSSES_FIT_THE_CLASSES = Check(
    id="D2",
    title="losses that the number of classes allows",
    source="AutoAttack's check of the number of classes (Croce & Hein 2020)",
    rule=(
        "DLR has at least 3 classes, targeted DLR at least 4. Attacks with more targets than wrong classes are "
        "named; they try all there are."
    ),
    meaning="An attack's loss is not defined for so few classes, and its outcome means nothing.",
    advice="Set its loss to margin.",
    run=losses_fit_the_classes,
)


def fields_of(attack: Attack) -> set[str]:
    """Names of an attack's settings."""
    return set(getattr(attack, "__dataclass_fields__", {}))


# T: does the loss rank images as their margins do? --------------------------------------------------------


def loss_ranks_like_the_margin(s: Subject) -> Finding:
    """The cross-entropy against the margin.

    Image by image, since that is where an attack climbs: over all images together, easy and hard ones alone would
    make a high correlation. Only points classified correctly count, because beyond the boundary a saturated
    cross-entropy grows again. Half of them lie on the segment to the end of a short attack on the margin: they
    reach from the image to the boundary, and a network that is merely confident is not tied on all of them. The
    median of the images, as on a few that many classes compete for an honest cross-entropy turns from the margin.
    """
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    if not bool((s.white.correct > 0.5).any()):
        return skipped("every image is broken already: no loss has kept an attack from that")
    x, y = s.x[rows], s.y[rows]
    threat = with_radius(s.threat, x)
    end = s.attack(PGD(steps=10, loss="margin", eot=s.eot), "t1/end", rows=rows, threat=threat).candidate
    random, values = s.random("t1", rows), []
    for i in range(RANDOM_POINTS + SEGMENT_POINTS):
        t = (i - RANDOM_POINTS) / (SEGMENT_POINTS - 1)
        point = random_start(x, threat, random) if i < RANDOM_POINTS else x + t * (end - x)
        logits = s.logits(point, random)
        values.append(torch.stack([exact_cross_entropy(logits, y), margin(logits.double(), y)]))
    ce, gap = torch.stack(values, 2).unbind(0)  # (R, P) each
    agree = []
    for i in range(len(rows)):
        correct = gap[i] < 0
        if int(correct.sum()) >= FEWEST_POINTS:
            agree.append(rank_correlation(ce[i][correct], gap[i][correct]))
    if not agree:
        return skipped(f"no image has {FEWEST_POINTS} points that are classified right")
    middle = statistics.median(agree)
    done = (
        f"cross-entropy and margin at {RANDOM_POINTS} random points and {SEGMENT_POINTS} on the way to the end of a "
        f"10-step attack, for each of {len(agree)} images"
    )
    return ruled(middle > AGREEMENT, done, {"rank_correlation": middle, "lowest": min(agree)})


LOSS_RANKS_LIKE_THE_MARGIN = Check(
    id="T1",
    title="A higher loss means closer to misclassified",
    source="Tramer et al. 2020 (consistent losses); figure and threshold are this project's",
    rule=(
        "Spearman's correlation of cross-entropy (in float64: what float32 rounds to 0 is V2's to find) and margin "
        "over points of the ball that are classified right, is above 0.9 in the median of the images. An image on "
        "which either is constant counts 0. Skipped where the white box has broken every image."
    ),
    meaning="Climbing the cross-entropy does not lead to an error: it is saturated, or outputs are bounded.",
    advice=(
        "Attack with the margin and with DLR, on the values before a last squashing layer, in float64 if need be."
    ),
    run=loss_ranks_like_the_margin,
)


def exact_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 + sum_{k != y} exp(z_k - z_y)) in float64, without the rounding to 0 of a sum that holds a 1; (B,).

    In float32, and as logsumexp(z) - z_y in any precision, the cross-entropy of an image that is classified right
    with a margin above about 17 is 0 exactly, and points of different margins tie. Here they do so above 745.

    Args:
        logits: (B, K).
        y: labels (B,).
    """
    z = logits.double()
    behind = (z - z.gather(1, y[:, None])).scatter(1, y[:, None], -math.inf)
    largest = behind.amax(1)
    # log1p where the image is right; where it is wrong, exp might overflow.
    right = torch.log1p(behind.clamp_max(0).exp().sum(1))
    wrong = torch.logsumexp(torch.cat([behind, torch.zeros_like(behind[:, :1])], 1), 1)
    return torch.where(largest <= 0, right, wrong)


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


def with_radius(threat: Threat, x: Tensor) -> Threat:
    """The threat with a radius that random points can be drawn from: the box's, where it has none."""
    if math.isfinite(threat.eps):
        return threat
    return replace(threat, eps=1.0 if threat.norm == "linf" else math.sqrt(x[0].numel()))


CHECKS: tuple[Check, ...] = (
    FORWARD_PASS_TAKES_NO_GRADIENTS,
    LOSSES_FIT_THE_CLASSES,
    LOSS_RANKS_LIKE_THE_MARGIN,
)
