"""Networks made from a network so that its loss does not vanish: scaled, in float64, without their last activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustbench_sparse.certificate.probes.rewiring import Rewired, Surrogate, calls_of, copied, same_noise

SOURCE_FLOOR = 1e-300  # keeps a logarithm finite in float64


class Scaled(Surrogate):
    """Logits times a factor > 0, in the images' type; (B, C, H, W) -> (B, K).

    Attacks want logits of their images' type: a network in float64 is attacked by way of this.
    """

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__(network)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits times the factor."""
        out: Tensor = self.network(x)
        return (out * self.factor).to(x.dtype)


class InFloat64(Surrogate):
    """A network in float64 that takes images of any type; (B, C, H, W) -> (B, K) in float64."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float64."""
        out: Tensor = self.network(x.double())
        return out.double()


def in_float64(model: nn.Module, x: Tensor) -> nn.Module | None:
    """A copy in float64; None where there is no copy, or no forward pass in float64.

    Args:
        model: the network.
        x: images (B, C, H, W) to try it on.
    """
    twin = copied(model)
    if twin is None:
        return None
    try:
        out = InFloat64(twin.double())
        with torch.no_grad(), same_noise(out):
            logits = out(x[:2])
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as constants that stay in float32
        return None
    return out if bool(logits.isfinite().all()) else None


class Inverted(Surrogate):
    """Undoes a sigmoid (``logit``), a softmax (``log``) or a tanh (``atanh``) last; (B, C, H, W) -> (B, K)."""

    def __init__(self, network: nn.Module, kind: Literal["logit", "log", "atanh"]) -> None:
        super().__init__(network)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float64, as far as rounding left them."""
        out: Tensor = self.network(x).double()
        if self.kind == "log":
            return torch.log(out.clamp_min(SOURCE_FLOOR))
        p = out if self.kind == "logit" else (out + 1) / 2
        # 1 - p loses what lies below float64's last digit; there the gradient ends.
        return torch.log(p.clamp_min(SOURCE_FLOOR)) - torch.log((1 - p).clamp_min(2.0**-53))


# The last activation ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Last:
    """A network's last elementwise part or softmax.

    Attributes:
        name: of its submodule; empty where it is code that no submodule holds.
        bounded: its values stay in one range however large what it gets.
        before: the network without it: the same verdicts, up to ties of a saturated output.
    """

    name: str
    bounded: bool
    before: nn.Module


def last_activation(model: nn.Module, x: Tensor) -> Last | None:
    """What a network's last computation is, where it can be taken away; None where there is no such part.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), on which the verdicts without it are compared.
    """
    network = copied(model) or model
    with torch.no_grad():
        record = calls_of(network, x)
    out = record.logits
    for call in reversed(record.calls):
        leaf = not any(True for _ in call.module.children())
        if not (leaf and call.plain and call.out.shape == out.shape and torch.equal(call.out, out)):
            continue
        if torch.equal(call.given, out):
            continue  # such as nn.Identity
        if not _same_verdicts(call.given, out):
            return None
        with torch.no_grad():
            far = call.module(1e6 * call.given).abs()
        bounded = bool(far.isfinite().all()) and far.max().item() <= max(1.0, 1.01 * out.abs().max().item())
        return Last(call.name, bounded, Rewired(network, skipped=call.place("output")))
    inverse = _inverse(model, x, out)
    return None if inverse is None else Last("", True, inverse)


def _inverse(model: nn.Module, x: Tensor, out: Tensor) -> nn.Module | None:
    """Undo a sigmoid, softmax or tanh in the network's code; None where the outputs are not like theirs."""
    wide = in_float64(model, x) or model
    low, high = out.min().item(), out.max().item()
    kind: Literal["logit", "log", "atanh"]
    if low >= 0 and high <= 1:
        sums = bool(((out.sum(1) - 1).abs() <= 1e-5).all())
        kind = "log" if sums else "logit"
    elif low >= -1 and high <= 1 and out.abs().max().item() > 0.99:
        kind = "atanh"
    else:
        return None
    surrogate = Inverted(wide, kind)
    with torch.no_grad(), same_noise(surrogate):
        logits = surrogate(x)
    return surrogate if bool(logits.isfinite().all()) and _same_verdicts(logits, out) else None


def _same_verdicts(before: Tensor, out: Tensor) -> bool:
    """Whether the largest logit is (one of) the largest outputs, for every image."""
    chosen = out.gather(1, before.argmax(1, keepdim=True).to(out.device)).squeeze(1)
    return bool((chosen >= out.amax(1) - 1e-6 * out.abs().amax(1)).all())
