"""Checks V: do the outputs leave the loss a gradient, or is it bounded, saturated or vanishing?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.base import Loss
from attacks.losses import LOSSES
from attacks.pgd import PGD
from robustbench_sparse.certificate.checks.gradients import slope_of, uniform_images
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.surrogates import Scaled, in_float64, last_activation
from robustbench_sparse.certificate.subject import Subject

SCALES = (0.1, 1.0, 10.0, 100.0)
GAP = 5.0  # of the two largest logits, after scaling: large enough for a clear winner, small enough for exp
SATURATED = 0.05  # an honest network's accuracy under cross-entropy may lie so far above that under a margin
VANISHING = 1e-3


def _fitted(s: Subject, network: nn.Module | None = None) -> float:
    """The factor that brings the median gap of the two largest logits to ``GAP``."""
    top = s.logits(s.x, s.random("fitted"), network).topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).double()
    typical = gap.median().item() or gap.mean().item()  # of a saturated output, most gaps may be 0
    return GAP / typical if typical > 0 else 1.0


def _rerun(s: Subject) -> tuple[Tensor, dict[str, Value]]:
    """The white box again on networks whose loss does not vanish, where it found nothing.

    Returns:
        The smallest share correct of each image, the white box's among them (n,), and the accuracies by name.
    """
    before = correct = s.white.correct
    rows = (before > 0.5).nonzero().flatten()
    wide, networks = in_float64(s.model, s.x), list[tuple[str, nn.Module]]()
    last = last_activation(s.model, s.x)
    if last is not None:
        networks.append(("pre_activation", in_float64(last.before, s.x) or last.before))
    networks.append(("float64" if wide is not None else "scaled", wide or s.model))
    measured: dict[str, Value] = {"white_acc": before.mean().item()}
    for name, network in networks:
        # Shares are noisy where the network is random: images chosen by them would look worse the next time.
        remaining = torch.arange(len(s), device=s.x.device) if s.stochastic else rows[correct[rows] > 0.5]
        if len(remaining):
            now = correct.clone()
            scaled = Scaled(network, _fitted(s, network))
            now[remaining] = s.strongest(f"rerun/{name}", rows=remaining, on=scaled).correct
            correct = smaller_of(s, correct, now)
        measured[f"after_{name}_acc"] = correct.mean().item()
    return correct, measured


def smaller_of(s: Subject, first: Tensor, second: Tensor) -> Tensor:
    """The smaller verdict of each image; of a random network, where that flatters, those of the smaller mean."""
    if s.stochastic:
        return second if second.mean() < first.mean() else first
    return torch.minimum(first, second)


def _overrated(s: Subject, correct: Tensor) -> bool:
    """Whether verdicts (n,) lie below the white box's, or below those of the benchmark's own attacks."""
    reported = bool(s.context.plans) and s.exceeds(s.reported, correct)
    return s.exceeds(s.white.correct, correct) or reported


def bounded_outputs_hide_nothing(s: Subject) -> Finding:
    """Bounded outputs."""
    if len(s) < 2:
        return skipped("there are fewer than two images")
    last = last_activation(s.model, s.x)
    noise = uniform_images(s)
    seen = [s.logits(s.x, s.random("v1/data")), s.logits(noise, s.random("v1/noise"))]
    seen.append(s.logits(noise.round(), s.random("v1/corners")))
    largest = torch.cat(seen).abs().max().item()
    grown = _far(s)
    observed = largest <= 1 and (grown is None or grown <= 1)
    measured: dict[str, Value] = {
        "largest_output": largest,
        "largest_output_far_outside": grown,
        "last_activation": (last.name or "in the code") if last is not None and last.bounded else "",
    }
    done = f"Outputs on {len(s)} images, as many of uniform noise and of black and white pixels"
    if not (observed or (last is not None and last.bounded)):
        return ruled(True, done, measured)
    correct, again = _rerun(s)
    done += "; outputs are bounded, so the white box again before the last activation, in float64 and scaled"
    return ruled(not _overrated(s, correct), done, {**measured, **again})


BOUNDED_OUTPUTS_HIDE_NOTHING = Check(
    id="V1",
    title="bounded outputs hide nothing",
    source="our own",
    rule="outputs are not bounded; where a sigmoid, tanh, softmax or the like comes last, or all outputs stay in "
    "[-1, 1], the white box before the last activation, in float64 and with scaled logits lowers the accuracy by "
    "no more than tau, against the white box and against the row's own attacks",
    meaning="The bounded output flattens every loss; the accuracy under attack was read off a flat place.",
    advice="Attack, and better deploy, the network without its last activation.",
    run=bounded_outputs_hide_nothing,
    refutes=True,
)


def _far(s: Subject) -> float | None:
    """The largest output for images of a thousandfold contrast; None where the network refuses them.

    No attack may go there. Logits of an honest network that happen to be small grow there, bounded ones do not.
    """
    try:
        return s.logits(1e3 * (s.x - 0.5), s.random("v1/far")).abs().max().item()
    except KeyboardInterrupt:
        raise
    except BaseException:  # a network may insist on images in [0, 1]
        return None


def loss_is_not_saturated(s: Subject) -> Finding:
    """A saturated loss."""
    # Five attacks: the whole set would cost several times what the other checks do.
    rows = s.correct_rows[: max(s.budget.few, s.budget.images // 2)]
    if len(rows) == 0:
        return skipped("no image is classified right")
    if slope_of(s).error:
        return skipped("no gradient can be computed, see G2")
    scales = list(dict.fromkeys((*SCALES, _fitted(s))))
    attack = PGD(steps=s.budget.steps, eot=s.eot)
    scores = {
        k: s.attack(attack, "v2", rows=rows, on=s.network if k == 1 else Scaled(s.network, k)).correct
        for k in scales
    }
    plain = scores[1.0]
    best = min((scores[k] for k in scores if k != 1), key=lambda correct: correct.mean().item())
    # Larger logits bring the cross-entropy nearer to a margin: what they gain is no sign of saturation.
    smaller = min((scores[k] for k in scores if k < 1), key=lambda correct: correct.mean().item())
    gap = (plain - smaller).mean().item()
    saturated = gap > SATURATED and s.exceeds(plain, smaller)
    white = s.white.correct[rows]
    undercut = s.exceeds(white, smaller_of(s, white, best))
    measured: dict[str, Value] = {
        "scales": scales,
        "accs": [correct.mean().item() for correct in scores.values()],
        "lower_by_share": gap,
        "white_acc": white.mean().item(),
    }
    done = (
        f"PGD on the cross-entropy, {attack.steps} steps, of logits times {len(scales)} factors, "
        f"on {len(rows)} images"
    )
    return ruled(not (saturated or undercut), done, measured)


LOSS_IS_NOT_SATURATED = Check(
    id="V2",
    title="the loss is not saturated",
    source="our own",
    rule="with logits times 0.1, or times the factor that brings the median gap of the two largest to 5 where that "
    "is below 1, cross-entropy PGD leaves an accuracy at most tau, or at most 0.05, below that with the logits as "
    "they are; and with these or larger factors (10, 100) at most tau below the white box's",
    meaning="The cross-entropy's gradient is zero to the last bit or all but the same everywhere; attacks on it "
    "see nothing.",
    advice="Take the smallest accuracy, and attack with a loss that does not depend on the scale: margin or DLR.",
    run=loss_is_not_saturated,
)


def gradients_do_not_vanish(s: Subject) -> Finding:
    """Vanishing gradients."""
    if s.context.twin is None:
        return skipped("there is no undefended network of the same kind to compare with")
    if len(s) == 0:
        return skipped("there are no images")
    name, twin = s.context.twin
    if slope_of(s).error:
        return skipped("no gradient can be computed, see G2")
    own, other = (_typical_gradient(s, model, LOSSES["ce"]) for model in (s.model, twin))
    ratio = own / other if other > 0 else None
    measured: dict[str, Value] = {"median_norm": own, "twin_median_norm": other, "ratio": ratio, "twin": name}
    done = f"Norms of the cross-entropy's gradient at {len(s)} images, in float64 where the network allows it"
    if ratio is None:
        return skipped("the undefended network's own gradient is zero")
    if ratio >= VANISHING:
        return ruled(True, done, measured)
    if _typical_gradient(s, s.model, LOSSES["margin"]) == 0:
        return ruled(
            False, done, measured, "the margin's gradient is zero as well, so that no attack can climb"
        )
    correct, again = _rerun(s)
    done += "; as they are small, the white box again before the last activation, in float64 and scaled"
    return ruled(not _overrated(s, correct), done, {**measured, **again})


GRADIENTS_DO_NOT_VANISH = Check(
    id="V3",
    title="gradients are as large as an undefended network's",
    source="our own",
    rule="the median norm of the cross-entropy's gradient is at least 1e-3 of the twin's; where it is not, the "
    "white box before the last activation, in float64 and with scaled logits lowers the accuracy by no more than "
    "tau; a margin whose gradient is zero fails",
    meaning="The gradient is so small that rounding, not the image, decides where an attack goes.",
    advice="Attack in float64 and with a loss that does not depend on the scale.",
    run=gradients_do_not_vanish,
)


def _typical_gradient(s: Subject, model: nn.Module, loss: Loss) -> float:
    """Median l2 norm of a loss's gradient over the images."""
    wide = in_float64(model, s.x)
    norms = []
    for part in torch.split(torch.arange(len(s), device=s.x.device), s.batch_size):
        x = s.x[part] if wide is None else s.x[part].double()
        slope, _, _ = s.gradient(x, "v3", loss, part, wide or model)
        norms.append(torch.linalg.vector_norm(slope.flatten(1).double(), dim=1))
    return torch.cat(norms).median().item()


CHECKS: tuple[Check, ...] = (
    BOUNDED_OUTPUTS_HIDE_NOTHING,
    LOSS_IS_NOT_SATURATED,
    GRADIENTS_DO_NOT_VANISH,
)
