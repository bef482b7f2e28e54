"""Checks G: does the network give gradients that an attack can climb?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.iterate import steepest
from attacks.losses import LOSSES
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.backward import agreement, bpda, killers, liars
from robustbench_sparse.certificate.probes.parts import AGREES
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.errors import one_line

PATH = 10  # steps of the path along which gradients are looked at
DEAD = 0.01  # share of images without a slope that is allowed: a few ReLUs may all be off by chance
SLOPES = 16  # images whose gradients are compared with differences
PROBABILITY = 1e-5  # tolerance of AutoAttack's check of outputs


@dataclass(frozen=True)
class Slope:
    """What is known of a network's gradient.

    Attributes:
        rows: images looked at, (R,): those classified correctly.
        error: what went wrong when a gradient was asked for, or an empty string.
        flat: images that meet a point where the margin's gradient is zero, bool (R,); all of them after an error.
        flat_ce: the same for the cross-entropy.
        cosine: see ``backward.agreement``; None where it says nothing.
    """

    rows: Tensor
    error: str
    flat: Tensor
    flat_ce: Tensor
    cosine: float | None

    @property
    def share(self) -> float:
        """Of images without a slope somewhere."""
        return self.flat.float().mean().item() if len(self.rows) else 0.0

    @property
    def wrong(self) -> bool:
        """Whether there is a gradient that does not fit the values."""
        return self.cosine is not None and self.cosine <= AGREES

    @property
    def bad(self) -> bool:
        """Whether an attack cannot trust it."""
        return bool(self.error) or self.share > DEAD or self.wrong


def slope_of(s: Subject) -> Slope:
    """What is known of the network's gradient; looked at once and kept."""
    known = getattr(s, "_slope", None)  # G1 and T2 both ask
    if isinstance(known, Slope):
        return known
    rows = s.correct_rows
    flat = flat_ce = torch.zeros(len(rows), dtype=torch.bool, device=s.x.device)
    cosine, error = None, s.no_gradient
    if error:
        flat = flat_ce = ~flat
    elif len(rows):
        flat, flat_ce = _path(s, rows)
        few = rows[:SLOPES]
        generator = s.random("slope/directions", few)
        cosine = agreement(
            s.model,
            s.x[few],
            s.y[few],
            lambda: generator.normal(s.x[few]),
            lambda: s.random("slope/noise", few),
        )
    found = Slope(rows, error, flat, flat_ce, cosine)
    s.__dict__["_slope"] = found
    return found


def _path(s: Subject, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Images that meet a zero gradient of the margin, and of the cross-entropy, on ``PATH`` steps up the margin."""
    flat, flat_ce = (torch.zeros(len(rows), dtype=torch.bool, device=s.x.device) for _ in range(2))
    for part in torch.split(torch.arange(len(rows), device=s.x.device), s.batch_size):
        clean = point = s.x[rows[part]]
        for k in range(PATH + 1):
            slope, _, _ = s.gradient(point, f"slope/{k}", LOSSES["margin"], rows[part])
            slope_ce, _, _ = s.gradient(point, f"slope/{k}", LOSSES["ce"], rows[part])
            flat[part] |= (slope == 0).flatten(1).all(1)
            flat_ce[part] |= (slope_ce == 0).flatten(1).all(1)
            step = s.threat.eps / 4 if math.isfinite(s.threat.eps) else 0.1
            point = s.threat.project(point + step * steepest(slope.nan_to_num(), s.threat.norm), clean)
    return flat, flat_ce


def gradients_fit_the_values(s: Subject) -> Finding:
    """Zero and wrong gradients."""
    slope = slope_of(s)
    if len(slope.rows) == 0:
        return skipped("no image is classified right")
    measured: dict[str, Value] = {
        "zero_margin_gradient_share": slope.share,
        "zero_cross_entropy_gradient_share": slope.flat_ce.float().mean().item(),
        "agreement_with_differences": slope.cosine,
    }
    done = (
        f"Gradients of margin and cross-entropy at {len(slope.rows)} images and along {PATH} steps from each; "
        f"slopes along 12 random directions against central differences on {min(SLOPES, len(slope.rows))}"
    )
    if not slope.bad:
        return ruled(True, done, measured)
    measured["images"] = s.indices(slope.rows[slope.flat])[:20]
    measured["guilty"] = guilty_parts(s, slope)[:20]
    surrogate = bpda(s.model, s.x[slope.rows], wrong=slope.wrong)
    if surrogate is None:
        return ruled(False, done, measured, "no part of the network could be taken for the identity")
    try:
        measured["bpda_acc"] = s.strongest("g1/bpda", on=surrogate).accuracy
    except (Exception, SystemExit) as e:  # the network's own passes raise whatever they like
        why = f"guilty parts taken for the identity: {type(e).__name__}: {one_line(e)[:120]}"
        return ruled(False, done, measured, why)
    return ruled(False, f"{done}; then the white box with guilty parts taken for the identity", measured)


GRADIENTS_FIT_THE_VALUES = Check(
    id="G1",
    title="gradients vanish nowhere and fit the values",
    source="zero gradients: AutoAttack's checks (Croce & Hein 2020); differences: our own",
    rule="at most 1 % of images meet a zero gradient of the margin at the image or on 10 steps from it, and the "
    "slopes that gradients claim along random directions have a cosine above 0.9 with central differences",
    meaning="An attack that follows gradients cannot move, or is led astray: its failure says nothing about the "
    "network. Zero gradients of the cross-entropy alone are reported only; V2 looks after them.",
    advice="Look at the parts named guilty. Report attacks that take them for the identity (BPDA), or that need no "
    "gradient.",
    run=gradients_fit_the_values,
)


def guilty_parts(s: Subject, slope: Slope) -> list[str]:
    """Parts that kill the gradient or give a wrong one."""
    x = s.x[slope.rows]
    return [*killers(s.model, x), *(liars(s.model, x) if slope.wrong else ())]


def gradients_can_be_computed(s: Subject) -> Finding:
    """Unavailable gradients."""
    if len(s) == 0:
        return skipped("there are no images")
    rows = torch.arange(len(s), device=s.x.device)
    errors = [e for e in (s.unavailable(part) for part in torch.split(rows, s.batch_size)) if e]
    measured: dict[str, Value] = {"error": errors[0] if errors else ""}
    return ruled(not errors, f"Gradients of cross-entropy and margin at {len(s)} images", measured)


GRADIENTS_CAN_BE_COMPUTED = Check(
    id="G2",
    title="gradients can be computed",
    source="unavailable gradients: Pintor et al. 2022, Indicators of Attack Failure",
    rule="the gradients of cross-entropy and margin raise no error and are finite at every image",
    meaning="Gradient attacks break off or stand still; whatever they left untouched was never attacked.",
    advice="Make the network differentiable, or judge it by attacks that need no gradient.",
    run=gradients_can_be_computed,
)


def outputs_are_logits(s: Subject) -> Finding:
    """Probabilities in place of logits."""
    if len(s) == 0:
        return skipped("there are no images")
    logits = torch.cat(
        [s.logits(s.x, s.random("g3/data")), s.logits(uniform_images(s), s.random("g3/noise"))]
    )
    inside = bool(((logits >= -PROBABILITY) & (logits <= 1 + PROBABILITY)).all())
    off = (logits.double().sum(1) - 1).abs().max().item()
    measured: dict[str, Value] = {
        "smallest": logits.min().item(),
        "largest": logits.max().item(),
        "sum_differs_from_1_by": off,
    }
    done = f"Outputs on {len(s)} images and as many of uniform noise"
    return ruled(not (inside and off <= PROBABILITY), done, measured)


OUTPUTS_ARE_LOGITS = Check(
    id="G3",
    title="outputs are logits",
    source="AutoAttack's checks (Croce & Hein 2020)",
    rule="outputs do not all lie in [0, 1] with sums of 1, up to 1e-5",
    meaning="The network returns probabilities. Losses take a softmax of a softmax and their gradients vanish.",
    advice="Return what goes into the softmax.",
    run=outputs_are_logits,
)


def uniform_images(s: Subject) -> Tensor:
    """One image of uniform noise for each image."""
    return s.random("uniform images").uniform(s.x)


CHECKS: tuple[Check, ...] = (
    GRADIENTS_FIT_THE_VALUES,
    GRADIENTS_CAN_BE_COMPUTED,
    OUTPUTS_ARE_LOGITS,
)
