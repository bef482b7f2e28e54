"""What in a network keeps gradients from flowing or makes them wrong, and surrogates that go around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, noise_from
from attacks.losses import margin
from robustbench_sparse.certificate.probes.parts import AGREES, lies
from robustbench_sparse.certificate.probes.rewiring import (
    PROBED,
    Bridge,
    Call,
    Place,
    Record,
    Rewired,
    calls_of,
    copied,
    varies,
)
from robustbench_sparse.certificate.probes.surrogates import InFloat64, in_float64

STAIRS = (6 / 255, 5 / 255, 4 / 255, 3 / 255, 7 / 255, 2 / 255)  # differences that are averaged
ROUNDS = 32  # gaps in the gradient that are closed one after another at most
SHARE = 0.25  # of the probed images: so many zero gradients are no accident


def _nonzero(grad: Tensor | None, count: int) -> Tensor:
    """Which images (count,) have a gradient that is not zero, bool."""
    if grad is None:
        return torch.zeros(count, dtype=torch.bool)
    if len(grad) != count:  # such as patches of an image
        return torch.full((count,), bool((grad != 0).any()))
    return (grad.flatten(1) != 0).any(1).cpu()


# What keeps gradients from flowing ----------------------------------------------------------------------


def _missing(network: nn.Module, x: Tensor, first: Sequence[Bridge] = ()) -> tuple[list[Bridge], bool]:
    """Bridges over all that kills the gradient of the margin, after some that are there already.

    Returns:
        All bridges, and whether the image gets a gradient in the end.
    """
    found = list(first)
    for _ in range(ROUNDS):
        record = calls_of(network, x, found, grad=True)
        if not record.logits.requires_grad:
            return found, False
        loss = margin(record.logits, record.logits.detach().argmax(1)).sum()
        tensors = [record.point, *(t for c in record.calls for t in (c.given, c.taken))]
        grads = torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)
        arrives = float(_nonzero(grads[0], len(x)).float().mean())
        into, out_of = list(grads[1::2]), list(grads[2::2])
        bridged = {b.target for b in found}
        new = _killing(record.calls, out_of, bridged, len(x))
        if not new and arrives <= 1 - SHARE:
            new = _entry(record, into, out_of, bridged)
        if not new:
            return found, arrives > 0
        found += new
    return found, False


def _killing(
    calls: list[Call], out_of: Sequence[Tensor | None], bridged: set[Place], count: int
) -> list[Bridge]:
    """Calls of parts without parameters that get a gradient and give none."""
    guilty: list[Call] = []
    for call, grad in zip(calls, out_of, strict=True):
        if not call.plain or grad is None or call.place("output") in bridged:
            continue
        if call.taken is call.given or not varies(call.out):
            continue
        gets = _nonzero(grad, count)
        gives = None
        if call.out.requires_grad:
            (gives,) = torch.autograd.grad(call.out, call.given, grad, allow_unused=True, retain_graph=True)
        lost = gets & ~_nonzero(gives, count)
        if bool(gets.any()) and float(lost.sum()) >= SHARE * float(gets.sum()):
            guilty.append(call)
    names = {c.name for c in guilty}
    inner = [c for c in guilty if not any(n.startswith(c.name + ".") for n in names)]
    return [Bridge(c.place("input"), c.place("output")) for c in inner]


def _entry(
    record: Record, into: Sequence[Tensor | None], out_of: Sequence[Tensor | None], bridged: set[Place]
) -> list[Bridge]:
    """A bridge to the first call whose input gets a gradient though the image gets none: the code before it kills."""
    count = len(record.point)
    for i, call in enumerate(record.calls):
        gets = float(_nonzero(into[i], count).float().mean())
        if gets <= 1 - SHARE or call.place("input") in bridged or not varies(call.given):
            continue
        if call.given.shape == record.point.shape:
            return [Bridge(None, call.place("input"))]
        for j in range(i - 1, -1, -1):
            earlier = record.calls[j]
            silent = float(_nonzero(out_of[j], count).float().mean()) < gets
            if earlier.taken.shape == call.given.shape and earlier.taken.grad_fn is not None and silent:
                return [Bridge(earlier.place("output"), call.place("input"))]
        if call.given.numel() == record.point.numel():
            return [Bridge(None, call.place("input"))]
    return []


def _first_layer(network: nn.Module, x: Tensor) -> list[Bridge]:
    """A bridge from the image to the first part with parameters that takes a tensor of the image's size."""
    with torch.no_grad():
        record = calls_of(network, x)
    for call in record.calls:
        if call.given.numel() == x.numel() and any(True for _ in call.module.parameters()):
            return [Bridge(None, call.place("input"))]
    return []


def killers(model: nn.Module, x: Tensor) -> list[str]:
    """What kills the gradient of the margin on its way to the image; empty where nothing does.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of submodules; ``before NAME`` is code that no submodule holds, ahead of the named one.
    """
    network, x = copied(model) or model, x[:PROBED]
    try:
        found, _ = _missing(network, x)
    except KeyboardInterrupt:
        raise
    except BaseException:  # no gradient at all, such as a detour over NumPy
        found = _first_layer(network, x)
    return [b.target.name if b.target.side == "output" else f"before {b.target.name}" for b in found]


def liars(model: nn.Module, x: Tensor) -> list[str]:
    """Parts without parameters whose gradient does not fit their values, and is not zero either.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of submodules, without repetition.
    """
    with torch.no_grad():
        record = calls_of(copied(model) or model, x[:PROBED])
    return list(dict.fromkeys(c.name for c in record.calls if c.plain and lies(c)))


def bpda(model: nn.Module, x: Tensor, *, wrong: bool = False, also: Sequence[str] = ()) -> nn.Module | None:
    """The same values with a backward pass that takes guilty parts for the identity.

    Backward Pass Differentiable Approximation (Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420,
    section 4.1).

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.
        wrong: the gradient is known to be wrong: parts whose own gradient does not fit their values are guilty, too,
            or, where there are none, all that lies before the first part with parameters.
        also: names of submodules that are to be taken for the identity as well, such as ``suspicious`` ones.

    Returns:
        The surrogate; None where nothing is guilty, or where no gradient would reach the image still.
    """
    network, x = copied(model) or model, x[:PROBED]
    extra: list[Bridge] = []
    if also or wrong:
        with torch.no_grad():
            record = calls_of(network, x)
        chosen = [c for c in record.calls if c.plain and (c.name in also or (wrong and lies(c)))]
        extra = [Bridge(c.place("input"), c.place("output")) for c in chosen]
    if wrong and not extra:
        extra = _first_layer(network, x)
    try:
        bridges, arrives = _missing(network, x, extra)
        detached = False
    except KeyboardInterrupt:
        raise
    except BaseException:  # no gradient at all, such as a detour over NumPy
        bridges, arrives, detached = _first_layer(network, x), True, True
    return Rewired(network, bridges, detached=detached) if bridges and arrives else None


# Gradients that are there, and wrong --------------------------------------------------------------------


def agreement(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: Callable[[], Tensor],
    random: Callable[[], SampleRandom],
    *,
    count: int = 12,
    steps: Sequence[float] = (1e-4, 4 / 255),
) -> float | None:
    """How well the margin's gradient foretells its central differences along random directions.

    In float64 where the network allows it. A step crosses kinks and stairs that are smaller than itself, so the
    better of two steps counts, or the mean over the steps ``STAIRS``: where activations are rounded, as in int8, a
    single difference is off by the rounding of its two ends, and a mean of six by less than half of that.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), drawn in from 0 and 1 so that both sides of a step lie in the box.
        y: labels (B,).
        directions: makes one random direction per image, (B, C, H, W), of entries about 1.
        random: makes the noise of one pass, the same each time.
        count: directions per image.
        steps: lengths of the differences, in pixel units.

    Returns:
        The median over the images of the cosine between the ``count`` slopes that the gradient claims and those that
        the values have, in [-1, 1]; None where either vanishes, or where equal images get unequal logits.
    """
    network = in_float64(model, x) or model
    along = [directions() for _ in range(count)]

    def values(point: Tensor) -> Tensor:
        with noise_from(network, random()):
            return margin(network(point.clone()), y).double()

    def differences(point: Tensor, step: float) -> Tensor:
        pairs = ((values(point + step * d) - values(point - step * d)) / (2 * step) for d in along)
        return torch.stack(list(pairs), 1)

    exact = isinstance(network, InFloat64)
    along = [d.double() if exact else d.to(x) for d in along]
    best: float | None = None
    for lengths in (*((step,) for step in steps), STAIRS):
        # Small steps drown in float32's rounding.
        lengths = lengths if exact else tuple(max(step, 2 / 255) for step in lengths)
        point = x.double() if exact else x
        point = point.clamp(2 * lengths[0], 1 - 2 * lengths[0]).detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(values(point).sum(), point)
        at = point.detach()
        with torch.no_grad():
            if not bool(torch.isclose(values(at), values(at), rtol=1e-6, atol=1e-12).all()):
                return None
            claimed = torch.stack([(grad * d).flatten(1).sum(1).double() for d in along], 1)
            real = torch.stack([differences(at, step) for step in lengths]).mean(0)
        cosine = _cosine(claimed, real)
        cosine = cosine[cosine.isfinite()]
        if len(cosine) * 2 >= len(x):
            now = cosine.median().item()
            best = now if best is None else max(best, now)
        if best is not None and best > AGREES:
            break
    return best


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the rows of two matrices (B, N), (B,); nan where a row is zero."""
    length = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(length > 0, (a * b).sum(1) / length, math.nan)
