"""Parts of a network that are found guilty by trying them again on what they got, not by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.base import RandomModule
from attacks.sparsifying import jumped_units
from robustbench_sparse.certificate.probes.rewiring import PROBED, Call, calls_of, copied, varies

AGREES = 0.9  # cosine of the slopes that a gradient claims and those that the values have


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _inside(call: Call) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
    """A call's part as a function and what it got, in float64 if it can; None for one that is random."""
    if any(isinstance(m, RandomModule) for m in call.module.modules()):
        return None
    for given in (call.given.detach().double(), call.given.detach()):
        try:
            with torch.no_grad():
                first, second = call.module(given.clone()), call.module(given.clone())
        except KeyboardInterrupt:
            raise
        except BaseException:  # a part that insists on its type
            continue
        if isinstance(first, Tensor) and first.shape == given.shape and torch.equal(first, second):
            return lambda t: call.module(t.clone()), given
    return None


def lies(call: Call) -> bool:
    """Whether a part's gradient does not fit its values."""
    inside = _inside(call)
    if inside is None or not varies(call.out):
        return False
    part, given = inside
    scale = float(given.std()) or 1.0
    step = scale * (1e-5 if given.dtype == torch.float64 else 1e-2)
    claimed, real = [], []
    for i in range(8):
        d, g = _normal(given, 2 * i), _normal(given, 2 * i + 1)
        at = given.clone().requires_grad_(True)
        with torch.enable_grad():
            out = part(at)
            grad = None
            if out.requires_grad:
                (grad,) = torch.autograd.grad(out, at, g, allow_unused=True)
        with torch.no_grad():
            real.append(
                (g * (part(given + step * d) - part(given - step * d))).flatten(1).sum(1) / (2 * step)
            )
        claimed.append(torch.zeros_like(real[-1]) if grad is None else (grad * d).flatten(1).sum(1))
    a, b = torch.stack(claimed).flatten(), torch.stack(real).flatten()
    length = float(a.norm() * b.norm())
    return length > 0 and float((a * b).sum()) / length <= AGREES


# Parts whose function jumps -----------------------------------------------------------------------------


def suspicious(model: nn.Module, x: Tensor) -> list[str]:
    """Parts without parameters whose function jumps, or that keep some units at the expense of others.

    Found by trying, not by name: each part is asked again on what it got. Random parts are left out.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of the innermost such submodules, without repetition.
    """
    network = copied(model) or model
    with torch.no_grad():
        calls = [c for c in calls_of(network, x[:PROBED]).calls if c.plain and varies(c.out)]
        names: list[str] = []
        for call in calls:
            inside = _inside(call)
            if inside is not None and call.name not in names and (_selects(*inside) or _jumps(*inside)):
                names.append(call.name)
    return [n for n in names if not any(other.startswith(n + ".") for other in names)]


def _selects(part: Callable[[Tensor], Tensor], given: Tensor) -> bool:
    """Whether units go out as they came or as zero, and which depends on the other units."""
    out = part(given)
    if not bool(((out == given) | (out == 0)).all()) or bool((out == given).all()):
        return False
    moved = _normal(given, 1) > 0
    other = torch.where(moved, given + 2 * given.std() * _normal(given, 2), given)
    return bool((part(other) != out)[~moved].any())


def _jumps(part: Callable[[Tensor], Tensor], given: Tensor) -> bool:
    """Whether a value changes by much over an interval of next to no length, for 1 % of the units that change."""
    wide = given.dtype == torch.float64
    halvings, keeps = (26, 1e-4) if wide else (14, 1e-2)
    high = given + given.std() * (0.5 + _normal(given, 3).abs())
    jumped, changes = jumped_units(part, given, high, halvings, keeps)
    return bool(changes.any()) and float(jumped.sum()) >= 0.01 * float(changes.sum())
