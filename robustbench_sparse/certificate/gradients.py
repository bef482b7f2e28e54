"""Does the network give gradients that an attack can climb: G1 to G3, V1 to V3, T2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Loss, SampleRandom, Threat, check, is_stochastic
from attacks.iterate import Best, random_start, steepest
from attacks.losses import LOSSES, loss_towards
from attacks.pgd import PGD
from attacks.random_search import PART, margins_of
from robustbench_sparse.certificate.check import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.certificate.surrogates import (
    AGREES,
    Scaled,
    agreement,
    bpda,
    in_float64,
    killers,
    last_activation,
    liars,
    suspicious,
)
from robustbench_sparse.errors import one_line

PATH = 10  # steps of the path along which gradients are looked at
DEAD = 0.01  # share of images without a slope that is allowed: a few ReLUs may all be off by chance
SLOPES = 16  # images whose gradients are compared with differences
PROBABILITY = 1e-5  # tolerance of AutoAttack's check of outputs
SCALES = (0.1, 1.0, 10.0, 100.0)
GAP = 5.0  # of the two largest logits, after scaling: large enough for a clear winner, small enough for exp
SATURATED = 0.05  # an honest network's accuracy under cross-entropy may lie so far above that under a margin
VANISHING = 1e-3


# G: is there a gradient ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slope:
    """What is known of a network's gradient.

    Attributes:
        rows: images looked at, (R,): those classified right.
        error: what went wrong when a gradient was asked for, or an empty string.
        flat: images that meet a point where the margin's gradient is zero, bool (R,); all of them after an error.
        flat_ce: the same for the cross-entropy.
        cosine: see ``surrogates.agreement``; None where it says nothing.
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


def _slope(s: Subject) -> _Slope:
    known = getattr(s, "_slope", None)  # G1 and T2 both ask
    if isinstance(known, _Slope):
        return known
    rows = s.right_rows
    flat = flat_ce = torch.zeros(len(rows), dtype=torch.bool, device=s.x.device)
    cosine, error = None, _unavailable(s, rows[:2]) if len(rows) else ""
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
    found = _Slope(rows, error, flat, flat_ce, cosine)
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


def _unavailable(s: Subject, rows: Tensor) -> str:
    """Why no gradient can be computed; an empty string where it can."""
    for name in ("ce", "margin"):
        loss: Loss = LOSSES[name]
        try:
            slope, _, _ = s.gradient(s.x[rows], "available", loss, rows)
        except Exception as e:  # whatever a foreign network's backward pass raises
            return f"{type(e).__name__}: {one_line(e)[:120]}"
        if not bool(slope.isfinite().all()):
            return f"the gradient of the {'cross-entropy' if name == 'ce' else 'margin'} is not finite"
    return ""


def g1(s: Subject) -> Finding:
    """Zero and wrong gradients."""
    slope = _slope(s)
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
    measured["guilty"] = _guilty(s, slope)[:20]
    surrogate = bpda(s.model, s.x[slope.rows], wrong=slope.wrong)
    if surrogate is None:
        return ruled(False, done, measured, "no part of the network could be taken for the identity")
    measured["bpda_acc"] = s.strongest("g1/bpda", on=surrogate).accuracy
    return ruled(False, f"{done}; then the white box with guilty parts taken for the identity", measured)


def _guilty(s: Subject, slope: _Slope) -> list[str]:
    """Parts that kill the gradient or give a wrong one."""
    x = s.x[slope.rows]
    return [*killers(s.model, x), *(liars(s.model, x) if slope.wrong else ())]


def g2(s: Subject) -> Finding:
    """Unavailable gradients."""
    if len(s) == 0:
        return skipped("there are no images")
    rows = torch.arange(len(s), device=s.x.device)
    errors = [e for e in (_unavailable(s, part) for part in torch.split(rows, s.batch_size)) if e]
    measured: dict[str, Value] = {"error": errors[0] if errors else ""}
    return ruled(not errors, f"Gradients of cross-entropy and margin at {len(s)} images", measured)


def g3(s: Subject) -> Finding:
    """Probabilities in place of logits."""
    if len(s) == 0:
        return skipped("there are no images")
    logits = torch.cat([s.logits(s.x, s.random("g3/data")), s.logits(_noise(s), s.random("g3/noise"))])
    inside = bool(((logits >= -PROBABILITY) & (logits <= 1 + PROBABILITY)).all())
    off = (logits.double().sum(1) - 1).abs().max().item()
    measured: dict[str, Value] = {
        "smallest": logits.min().item(),
        "largest": logits.max().item(),
        "sum_differs_from_1_by": off,
    }
    done = f"Outputs on {len(s)} images and as many of uniform noise"
    return ruled(not (inside and off <= PROBABILITY), done, measured)


def _noise(s: Subject) -> Tensor:
    """One image of uniform noise for each image."""
    return s.random("uniform images").uniform(s.x)


# V: does the loss vanish --------------------------------------------------------------------------------


def _fitted(s: Subject, network: nn.Module | None = None) -> float:
    """The factor that brings the median gap of the two largest logits to ``GAP``."""
    top = s.logits(s.x, s.random("fitted"), network).topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).double()
    typical = gap.median().item() or gap.mean().item()  # of a saturated output, most gaps may be 0
    return GAP / typical if typical > 0 else 1.0


def _rerun(s: Subject) -> tuple[Tensor, dict[str, Value]]:
    """The white box again on networks whose loss does not vanish, where it found nothing.

    Returns:
        The smallest share right of each image, the white box's among them (n,), and the accuracies by name.
    """
    before = right = s.white.right
    rows = (before > 0.5).nonzero().flatten()
    wide, networks = in_float64(s.model, s.x), list[tuple[str, nn.Module]]()
    last = last_activation(s.model, s.x)
    if last is not None:
        networks.append(("pre_activation", in_float64(last.before, s.x) or last.before))
    networks.append(("float64" if wide is not None else "scaled", wide or s.model))
    measured: dict[str, Value] = {"white_acc": before.mean().item()}
    for name, network in networks:
        # Shares are noisy where the network is random: images chosen by them would look worse the next time.
        left = torch.arange(len(s), device=s.x.device) if s.stochastic else rows[right[rows] > 0.5]
        if len(left):
            now = right.clone()
            scaled = Scaled(network, _fitted(s, network))
            now[left] = s.strongest(f"rerun/{name}", rows=left, on=scaled).right
            right = _smaller(s, right, now)
        measured[f"after_{name}_acc"] = right.mean().item()
    return right, measured


def _smaller(s: Subject, first: Tensor, second: Tensor) -> Tensor:
    """The smaller verdict of each image; of a random network, where that flatters, those of the smaller mean."""
    if s.stochastic:
        return second if second.mean() < first.mean() else first
    return torch.minimum(first, second)


def _overrated(s: Subject, right: Tensor) -> bool:
    """Whether verdicts (n,) lie below the white box's, or below those of the benchmark's own attacks."""
    reported = bool(s.context.plans) and s.exceeds(s.reported, right)
    return s.exceeds(s.white.right, right) or reported


def v1(s: Subject) -> Finding:
    """Bounded outputs."""
    if len(s) < 2:
        return skipped("there are fewer than two images")
    last = last_activation(s.model, s.x)
    noise = _noise(s)
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
    right, again = _rerun(s)
    done += "; outputs are bounded, so the white box again before the last activation, in float64 and scaled"
    return ruled(not _overrated(s, right), done, {**measured, **again})


def _far(s: Subject) -> float | None:
    """The largest output for images of a thousandfold contrast; None where the network refuses them.

    No attack may go there. Logits of an honest network that happen to be small grow there, bounded ones do not.
    """
    try:
        return s.logits(1e3 * (s.x - 0.5), s.random("v1/far")).abs().max().item()
    except Exception:  # a network may insist on images in [0, 1]
        return None


def v2(s: Subject) -> Finding:
    """A saturated loss."""
    # Five attacks: the whole set would cost several times what the other checks do.
    rows = s.right_rows[: max(s.budget.few, s.budget.images // 2)]
    if len(rows) == 0:
        return skipped("no image is classified right")
    if _slope(s).error:
        return skipped("no gradient can be computed, see G2")
    scales = list(dict.fromkeys((*SCALES, _fitted(s))))
    attack = PGD(steps=s.budget.steps, eot=s.eot)
    scores = {
        k: s.attack(attack, "v2", rows=rows, on=s.network if k == 1 else Scaled(s.network, k)).right
        for k in scales
    }
    plain = scores[1.0]
    best = min((scores[k] for k in scores if k != 1), key=lambda right: right.mean().item())
    # Larger logits bring the cross-entropy nearer to a margin: what they gain is no sign of saturation.
    smaller = min((scores[k] for k in scores if k < 1), key=lambda right: right.mean().item())
    gap = (plain - smaller).mean().item()
    saturated = gap > SATURATED and s.exceeds(plain, smaller)
    white = s.white.right[rows]
    undercut = s.exceeds(white, _smaller(s, white, best))
    measured: dict[str, Value] = {
        "scales": scales,
        "accs": [right.mean().item() for right in scores.values()],
        "lower_by_share": gap,
        "white_acc": white.mean().item(),
    }
    done = (
        f"PGD on the cross-entropy, {attack.steps} steps, of logits times {len(scales)} factors, "
        f"on {len(rows)} images"
    )
    return ruled(not (saturated or undercut), done, measured)


def v3(s: Subject) -> Finding:
    """Vanishing gradients."""
    if s.context.twin is None:
        return skipped("there is no undefended network of the same kind to compare with")
    if len(s) == 0:
        return skipped("there are no images")
    name, twin = s.context.twin
    if _slope(s).error:
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
    right, again = _rerun(s)
    done += "; as they are small, the white box again before the last activation, in float64 and scaled"
    return ruled(not _overrated(s, right), done, {**measured, **again})


def _typical_gradient(s: Subject, model: nn.Module, loss: Loss) -> float:
    """Median l2 norm of a loss's gradient over the images."""
    wide = in_float64(model, s.x)
    norms = []
    for part in torch.split(torch.arange(len(s), device=s.x.device), s.batch_size):
        x = s.x[part] if wide is None else s.x[part].double()
        slope, _, _ = s.gradient(x, "v3", loss, part, wide or model)
        norms.append(torch.linalg.vector_norm(slope.flatten(1).double(), dim=1))
    return torch.cat(norms).median().item()


# T2: parts that have no gradient ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy(Attack):
    """PGD on the margin whose gradient is estimated from values alone.

    Salimans et al. 2017, https://arxiv.org/abs/1703.03864: the gradient of the margin, smoothed by N(0, sigma^2),
    is the mean of (f(x + sigma u) - f(x - sigma u)) / (2 sigma) * u, u ~ N(0, I).

    Args:
        target: see :class:`attacks.base.Attack`.
        samples: values per step, two for each u.
        steps: of length 2.5 * eps / steps.
        sigma: in pixel units; None means the ball's eps, per pixel with l2.
    """

    black_box: ClassVar[bool] = True
    samples: int = 100
    steps: int = 20
    sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.samples >= 2, "samples", "an integer >= 2", self.samples)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(self.sigma is None or self.sigma > 0, "sigma", "a number > 0 or null", self.sigma)

    @property
    def queries(self) -> int:
        """Answers of the network per image at most."""
        return self.steps * (2 * (self.samples // 2) + 1) + 1

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a radius."""
        check(math.isfinite(threat.eps), "eps", "a finite number", threat.eps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random)
        best, loss, stops = Best(x), loss_towards("margin", towards), not is_stochastic(model)
        reach = threat.eps if threat.norm == "linf" else threat.eps / math.sqrt(x[0].numel())
        sigma = reach if self.sigma is None else self.sigma
        pairs = self.samples // 2
        point, rows = random_start(x, threat, random), torch.arange(len(x), device=x.device)
        for k in range(self.steps + 1):
            for part in torch.split(rows, max(1, PART // (2 * pairs + 1))):
                streams, at = random.subset(part), point[part]
                u = streams.normal(at[:, None].expand(-1, pairs, *at.shape[1:]))
                around = torch.cat([at[:, None], at[:, None] + sigma * u, at[:, None] - sigma * u], 1)
                if k == self.steps:
                    around = around[:, :1]
                f = margins_of(model, around.clamp(0, 1), goal[part], loss, streams)
                best.update(part, at, f[:, 0])
                if k < self.steps:
                    change = (f[:, 1 : pairs + 1] - f[:, pairs + 1 :]).nan_to_num()
                    slope = torch.einsum("bn,bn...->b...", change.to(u), u)
                    step = 2.5 * threat.eps / self.steps * steepest(slope, threat.norm)
                    point[part] = threat.project(at + step, x[part])
            if stops:
                rows = rows[~best.fooled[rows]]
            if len(rows) == 0:
                break
        return best.result()


def t2(s: Subject) -> Finding:
    """Parts without a gradient, or with one that says little."""
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    slope = _slope(s)
    jumps = suspicious(s.model, s.x[rows])
    guilty = _guilty(s, slope)
    if not (jumps or guilty or slope.bad):
        return skipped(
            "no part of the network jumps, selects or kills gradients, and the gradient fits the values"
        )
    white = _white(s)[rows]
    b = s.budget
    blind = EvolutionStrategy(samples=b.samples, steps=max(10, b.steps // 4))
    right = s.attack(blind, "t2/es", rows=rows).right
    measured: dict[str, Value] = {
        "parts": _first([*jumps, *guilty]),
        "white_acc": white.mean().item(),
        "es_acc": right.mean().item(),
    }
    surrogate = bpda(s.model, s.x[rows], wrong=slope.wrong, also=jumps)
    if surrogate is not None:
        identity = s.strongest("t2/bpda", rows=rows, on=surrogate).right
        measured["bpda_acc"] = identity.mean().item()
        right = _smaller(s, right, identity)
    done = (
        f"PGD, {blind.steps} steps, with gradients estimated from {blind.samples} values each"
        + (", and the white box with these parts taken for the identity" if surrogate is not None else "")
        + f", on {len(rows)} images"
    )
    return ruled(not s.exceeds(white, _smaller(s, white, right)), done, measured)


def _first(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))[:20]


def _white(s: Subject) -> Tensor:
    """The white box's verdicts (n,), or those of the row where no gradient attack runs."""
    if _slope(s).error:
        return torch.minimum(s.clean, s.reported)
    return s.white.right


CHECKS: tuple[Check, ...] = (
    Check(
        id="G1",
        title="gradients vanish nowhere and fit the values",
        source="zero gradients: AutoAttack's checks (Croce & Hein 2020); differences: our own",
        rule="at most 1 % of images meet a zero gradient of the margin at the image or on 10 steps from it, and the "
        "slopes that gradients claim along random directions have a cosine above 0.9 with central differences",
        meaning="An attack that follows gradients cannot move, or is led astray: its failure says nothing about the "
        "network. Zero gradients of the cross-entropy alone are reported only; V2 looks after them.",
        advice="Look at the parts named guilty. Report attacks that take them for the identity (BPDA), or that need no "
        "gradient.",
        run=g1,
    ),
    Check(
        id="G2",
        title="gradients can be computed",
        source="unavailable gradients: Pintor et al. 2022, Indicators of Attack Failure",
        rule="the gradients of cross-entropy and margin raise no error and are finite at every image",
        meaning="Gradient attacks break off or stand still; whatever they left untouched was never attacked.",
        advice="Make the network differentiable, or judge it by attacks that need no gradient.",
        run=g2,
    ),
    Check(
        id="G3",
        title="outputs are logits",
        source="AutoAttack's checks (Croce & Hein 2020)",
        rule="outputs do not all lie in [0, 1] with sums of 1, up to 1e-5",
        meaning="The network returns probabilities. Losses take a softmax of a softmax and their gradients vanish.",
        advice="Return what goes into the softmax.",
        run=g3,
    ),
    Check(
        id="V1",
        title="bounded outputs hide nothing",
        source="our own",
        rule="outputs are not bounded; where a sigmoid, tanh, softmax or the like comes last, or all outputs stay in "
        "[-1, 1], the white box before the last activation, in float64 and with scaled logits lowers the accuracy by "
        "no more than tau, against the white box and against the row's own attacks",
        meaning="The bounded output flattens every loss; the accuracy under attack was read off a flat place.",
        advice="Attack, and better deploy, the network without its last activation.",
        run=v1,
        refutes=True,
    ),
    Check(
        id="V2",
        title="the loss is not saturated",
        source="our own",
        rule="with logits times 0.1, or times the factor that brings the median gap of the two largest to 5 where that "
        "is below 1, cross-entropy PGD leaves an accuracy at most tau, or at most 0.05, below that with the logits as "
        "they are; and with these or larger factors (10, 100) at most tau below the white box's",
        meaning="The cross-entropy's gradient is zero to the last bit or all but the same everywhere; attacks on it "
        "see nothing.",
        advice="Take the smallest accuracy, and attack with a loss that does not depend on the scale: margin or DLR.",
        run=v2,
    ),
    Check(
        id="V3",
        title="gradients are as large as an undefended network's",
        source="our own",
        rule="the median norm of the cross-entropy's gradient is at least 1e-3 of the twin's; where it is not, the "
        "white box before the last activation, in float64 and with scaled logits lowers the accuracy by no more than "
        "tau; a margin whose gradient is zero fails",
        meaning="The gradient is so small that rounding, not the image, decides where an attack goes.",
        advice="Attack in float64 and with a loss that does not depend on the scale.",
        run=v3,
    ),
    Check(
        id="T2",
        title="jumps and selections hide nothing",
        source="adaptive attack on k-winners-take-all: Tramer et al. 2020; BPDA: Athalye et al. 2018",
        rule="where a part of the network jumps, keeps some units at the expense of others or kills gradients, PGD "
        "with gradients estimated from values, and the white box with those parts taken for the identity, leave an "
        "accuracy at most tau below the white box's",
        meaning="The gradient at a point says little about the points beside it: the white box was misled.",
        advice="Report the adaptive attack's accuracy. More samples per step find more.",
        run=t2,
        refutes=True,
    ),
)
