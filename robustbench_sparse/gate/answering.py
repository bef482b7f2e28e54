"""What a network answers: logits, the right class, the same again in any batch, a gradient; and its masks."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.gate.base import Check, Line, Look, floor
from robustbench_sparse.sources.state_dicts import MASK, ORIGINAL, masked_layers

SUMS = 1e-3  # by which probabilities may miss 1
FEW_ZEROS = 0.1  # share of exact zeros that a sigmoid may come to
SAME = 1e-4  # of the largest logit, by which float32 differs between batches
ASKED = 16  # images that are asked again, and whose gradients are looked at
DEAD = 0.5  # share of the images without a gradient that is too large
FITS = 0.05  # relative: how far slopes and gradients may be apart
FEWEST = 20  # images on which an accuracy says something
TOLERANCE = 2.0  # points below the expected accuracy that still pass
LEVEL = 0.999  # of the interval on these few images; the whole test set is held against it, too


def output_is_logits(s: Look) -> Line:
    """Shape, finiteness, and whether the answers are probabilities."""
    out = s.logits
    if out.shape != (len(s.y), len(s.names)):
        return Line("output", "stop", f"expected logits ({len(s.y)}, {len(s.names)}), got {tuple(out.shape)}")
    bad = int((~out.isfinite().all(1)).sum())
    if bad:
        return Line(
            "output", "warn", f"logits that are not finite on {bad} of {len(out)} images: they count as wrong"
        )
    sums = bool((out >= 0).all()) and bool(((out.sum(1) - 1).abs() < SUMS).all())
    if sums or _of_a_sigmoid(out):
        what = "probabilities" if sums else "values in [0, 1] (of a sigmoid?)"
        return Line(
            "output",
            "warn",
            f"{what} and no logits: gradients vanish where it is sure, which looks robust; take the last layer off",
        )
    if bool((out.logsumexp(1).abs() < SUMS).all()):
        return Line("output", "ok", f"log-probabilities of {out.shape[1]} classes: as good as logits")
    return Line("output", "ok", f"logits of {out.shape[1]} classes")


def _of_a_sigmoid(out: Tensor) -> bool:
    """Whether answers (n, K) fill [0, 1] as a sigmoid's do; logits behind a ReLU may lie there, too, with zeros."""
    within = bool((out >= 0).all()) and bool((out <= 1).all())
    return within and float(out.amax(1).mean()) > 0.5 and float((out == 0).float().mean()) < FEW_ZEROS


OUTPUT = Check(
    name="output",
    asks="Are the answers finite logits (B, K) and no probabilities?",
    look=output_is_logits,
)


def clean_accuracy_is_right(s: Look) -> Line:
    """The accuracy on these images, held against what is expected, its maker's claim, and guessing."""
    n, rate = len(s.y), s.accuracy
    high = 100 * wilson(float(s.right.sum()), n, LEVEL)[1]
    if s.expected is not None:
        if rate < s.expected - TOLERANCE and high < s.expected:
            return Line("clean", "stop", _failure(rate, s.expected, len(s.names)))
    elif n >= FEWEST and rate < floor(len(s.names)):
        return Line("clean", "stop", _failure(rate, None, len(s.names)))
    if s.claim is not None and rate < s.claim - TOLERANCE and high < s.claim:
        return Line(
            "clean", "warn", f"{rate:.1f} % of {n} images, where its maker says {s.claim:g} %; {_LOOK}"
        )
    beside = "" if s.claim is None else f", its maker says {s.claim:g} %"
    return Line("clean", "ok", f"{rate:.1f} % of {n} images{beside}")


_LOOK = (
    "look at: the weights (were they loaded? --weights), the normalisation that the network was trained with "
    "(images here are in [0, 1]: put it into the network), the order of classes and of colour channels"
)


def failure_of(right: Tensor, classes: int, expected: float | None) -> str:
    """Why a clean accuracy shows that something must be wrong with how a network is fed; else empty.

    Args:
        right: for each image the share of draws that are right, (n,).
        classes: number of classes.
        expected: the accuracy that its maker claims, in percent; what is not ``TOLERANCE`` points below it passes.
            Without one, less than a tenth of the way from guessing to perfect does not.
    """
    n, total = len(right), math.fsum(right.tolist())
    rate = 100 * total / n
    if expected is not None:
        below = rate < expected - TOLERANCE and 100 * wilson(total, n)[1] < expected
        return _failure(rate, expected, classes) if below else ""
    return _failure(rate, None, classes) if n >= FEWEST and rate < floor(classes) else ""


def _failure(rate: float, expected: float | None, classes: int) -> str:
    if expected is not None:
        return f"clean accuracy {rate:.1f} %, where --expect-clean says {expected:g} %; {_LOOK}"
    return (
        f"clean accuracy {rate:.1f} %, and guessing has {100 / classes:.1f} %: nothing was attacked; {_LOOK}. If it "
        f"is meant to be so, say --expect-clean {math.floor(rate)}"
    )


CLEAN = Check(
    name="clean",
    asks="Is the clean accuracy what it should be?",
    look=clean_accuracy_is_right,
)


def answers_stay_the_same(s: Look) -> Line:
    """The same images again, in other company and alone; and whether asking changes the network."""
    x = s.x[:ASKED]
    training = [name or type(m).__name__ for name, m in s.model.named_modules() if m.training]
    before = {name: b.clone() for name, b in s.model.named_buffers()}
    first = s.ask(x)
    moved = [name for name, b in s.model.named_buffers() if not _equal(before[name], b)]
    scale = float(first.abs().nan_to_num(0, 0, 0).max()) or 1.0

    def apart(out: Tensor) -> bool:
        return float((out - first).abs().nan_to_num(0, 0, 0).max()) > SAME * scale

    if training or moved:
        what = f"{training[0]} stays in training mode" if training else f"asking it changes {moved[0]}"
        return Line(
            "mode",
            "warn",
            f"in eval mode {what}: call eval() on every part, and no F.dropout without training=",
        )
    if not s.stochastic and apart(s.ask(x)):
        return Line(
            "mode",
            "warn",
            "the same images get other answers: dropout that is not off? Noise that is meant: derive its layer from "
            "attacks.base.RandomModule",
        )
    if not s.stochastic and len(x) > 1:
        alone = s.ask(x, batch=1)
        mixed = s.ask(torch.cat([s.x[-ASKED:].flip(0), x]))[-len(x) :]
        if apart(alone) or apart(mixed):
            return Line(
                "mode",
                "warn",
                "an image's answer depends on the others in its batch: batch-norm in training mode (or without running "
                "statistics)? An attack on one image then moves others",
            )
    said = "random, as it says" if s.stochastic else "the same answers again, alone and in any batch"
    return Line("mode", "ok", said)


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one.nan_to_num(), two.nan_to_num())


MODE = Check(
    name="mode",
    asks="Is it in eval mode, deterministic, and indifferent to the rest of the batch?",
    look=answers_stay_the_same,
)


def gradients_are_there(s: Look) -> Line:
    """Gradients of the margin with respect to the images, against finite differences along a random direction."""
    if s.black_box:
        return Line("gradients", "skipped", "it answers and has no gradient: attacks without gradients only")
    x, y = s.x[:ASKED], s.y[:ASKED]
    try:
        slopes = _slopes(s, x, y, torch.float64) or _slopes(s, x, y, torch.float32)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        return Line(
            "gradients",
            "warn",
            f"asking for one fails ({type(e).__name__}): attacks by gradients measure nothing here; what the network "
            "does with images has to be differentiable (no detach, no_grad, numpy)",
        )
    if slopes is None:
        return Line("gradients", "skipped", "the network cannot be asked in float32 or float64")
    norms, along, measured = slopes
    dead = float((norms == 0).float().mean())
    if dead > DEAD:
        return Line(
            "gradients",
            "warn",
            f"zero on {100 * dead:.0f} % of the images: attacks by gradients stand still and measure nothing; look for "
            "rounding, detach, or a softmax at the end; square needs none (--attacks square)",
        )
    alive = norms > 0
    size = torch.maximum(along.abs(), measured.abs()).clamp_min(1e-12)
    error = float(((along - measured).abs() / size)[alive].median())
    if error > FITS:
        return Line(
            "gradients",
            "warn",
            f"they differ from finite differences (by {100 * error:.0f} %, median): the backward pass is not that of "
            "the forward pass; look for custom gradients and rounding, and add attacks without gradients",
        )
    return Line("gradients", "ok", "there, and they match finite differences")


def _slopes(s: Look, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """Norms of the gradients, their slopes along a direction, and those of finite differences; (B,) each.

    In float64 where a copy of the network can be asked in it: steps can then be so small that few kinks lie between.
    """
    twin = s
    if dtype == torch.float64:
        try:
            model = copy.deepcopy(s.model).to(dtype)
            with torch.no_grad():
                if model(x[:1].to(dtype)).dtype != dtype:
                    return None
        except KeyboardInterrupt:
            raise
        except BaseException:
            return None
        twin = Look(model=model, x=s.x, y=s.y, names=s.names)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator).sign().to(x.device, dtype)
    # Off the edges of [0, 1], where images are clamped, and off flat areas, where a maximum is taken of equal values.
    noise = torch.rand(x.shape, generator=generator).to(x.device, dtype)
    x = (0.98 * x.to(dtype) + 0.005 + 0.01 * noise).detach()
    point = x.clone().requires_grad_(True)
    with torch.enable_grad():
        value = _margin(twin.answer(point), y)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    step = 1e-6 if dtype == torch.float64 else 2e-3
    with torch.no_grad():
        ahead, behind = (_margin(twin.answer(x + t * direction), y) for t in (step, -step))
    return (
        gradient.flatten(1).norm(dim=1).cpu(),
        (gradient * direction).flatten(1).sum(1).cpu(),
        ((ahead - behind) / (2 * step)).cpu(),
    )


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the label minus the mean of the others, which has no kinks of its own; (B,)."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - (logits.sum(1) - own) / (logits.shape[1] - 1)


GRADIENTS = Check(
    name="gradients",
    asks="Are there gradients with respect to the images, and do they match finite differences?",
    look=gradients_are_there,
)


def masks_are_folded(s: Look) -> Line:
    """Pruning masks that are still beside the weights, and weights that are no numbers."""
    masked = masked_layers(s.model)
    if masked:
        return Line(
            "masks",
            "warn",
            f"{len(masked)} weights have a pruning mask beside them, whose zeros are not counted: "
            "torch.nn.utils.prune.remove(layer, 'weight')",
        )
    weights = {n for n, _ in s.model.named_parameters()}
    masks = [n for n, _ in s.model.named_buffers() if n.endswith(MASK)]
    loose = [n for n in masks if weights & {n.removesuffix(MASK), n.removesuffix(MASK) + ORIGINAL}]
    if loose:
        return Line(
            "masks",
            "warn",
            f"{loose[0]} lies beside its weight, and zeros are counted in the weight alone: multiply it in",
        )
    bad = [n for n, p in s.model.named_parameters() if not bool(p.isfinite().all())]
    if bad:
        return Line("masks", "warn", f"{bad[0]} has values that are not finite")
    return Line("masks", "ok", "none beside the weights")


MASKS = Check(
    name="masks",
    asks="Are pruning masks part of the weights that are counted?",
    look=masks_are_folded,
)
