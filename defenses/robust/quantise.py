"""Quantisation after training: weights and activations rounded to few bits in the network that is judged.

Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.1, with one scale per output channel as in Krishnamoorthi
2018, https://arxiv.org/abs/1806.08342, section 2.3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from attacks.base import check
from defenses.base import Defense, Make, Step, frozen_statistics
from defenses.robust.inserting import inserted, show

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Rounding(nn.Module):
    """x -> scale (clip(round(x / scale) + zero, 0, 2^bits - 1) - zero), torch's own fake quantisation; any shape.

    Its gradient is straight through: 1 where nothing is clipped, else 0. Until it is calibrated it is the identity.

    Args:
        bits: of the whole numbers.

    Attributes:
        scale: > 0, (1,); empty until it is calibrated.
        zero: the whole number that stands for 0, int32, likewise.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero", torch.empty(0, dtype=torch.int32))

    def calibrate(self, low: Tensor, high: Tensor) -> None:
        """Let the whole numbers reach from the smallest to the largest value, and to 0; scalars."""
        levels = 2**self.bits - 1
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / levels
        self.scale = torch.where(scale > 0, scale, 1.0).float().view(1)
        self.zero = torch.round(-low / self.scale).clamp(0, levels).to(torch.int32).view(1)

    def forward(self, x: Tensor) -> Tensor:
        """Round."""
        return _rounded(x, self.scale, self.zero, self.bits)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # A file of a calibrated network has numbers where a fresh one has none.
        for name in ("scale", "zero"):
            stored = state.get(prefix + name)
            if stored is not None and stored.shape == (1,):
                own: Tensor = getattr(self, name)
                setattr(self, name, own.new_empty(1))
        super()._load_from_state_dict(state, prefix, *args)


# One step to a tracer, which cannot follow what depends on shapes: the network around stays foldable.
@fx.wrap
def _rounded(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    if scale.numel() == 0:
        return x
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 2**bits - 1).to(x.dtype)


class RoundedLayer(nn.Module):
    """A convolution or linear layer behind the rounding of its input."""

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        self.rounding, self.layer = Rounding(bits), layer

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        out: Tensor = self.layer(self.rounding(x))
        return out


@dataclass(frozen=True, kw_only=True)
class Quantise(Defense):
    """The network trains as it would without; what is validated and judged after each epoch is rounded to few bits.

    The weights W of convolutions and linear layers become scale_o * n with whole numbers |n| <= 2^(bits - 1) - 1 and
    scale_o = max |W[o]| / (2^(bits - 1) - 1), one for each output o: a zero stays one. What these layers read becomes
    one of 2^bits evenly spaced values, 0 among them, from the smallest to the largest seen on training images (by the
    network before any rounding). Biases, batch-norm and what is not read by such a layer stay as they are. An image's
    pixels are read by such a layer, too; 8 bits leave those of 8-bit images as they are.

    The rounded weights lie in the file, in float32. Gradients pass through the rounding, so that attacks can climb on
    the very network that is judged. ``robustbench-sparse quantise`` makes a file of whole numbers.

    Args:
        bits: 2 to 8; 0 leaves the network as it is.
        images: training images that the ranges are taken from; drawn at a stage's start.
    """

    bits: int = 0
    images: int = 512
    tasks: ClassVar[tuple[str, ...]] = ("classify",)

    def __post_init__(self) -> None:
        check(self.bits == 0 or 2 <= self.bits <= 8, "bits", "an integer from 2 to 8, or 0", self.bits)
        check(self.images >= 1, "images", "an integer >= 1", self.images)

    def check(self, model: nn.Module) -> None:
        """There have to be layers to round."""
        if self.bits > 0 and not any(isinstance(m, RoundedLayer) for m in model.modules()):
            name = type(model).__name__
            raise ValueError(
                f"bits: expected a network of convolutions and linear layers, got {name} without any"
            )

    def wrap(self, make: Make) -> Make:
        """A factory of the network with places for scales and zeros, empty as long as it trains."""
        if self.bits == 0:
            return make
        return lambda: inserted(make(), LAYERS, lambda part: RoundedLayer(part, self.bits))

    def begin(self, s: Step) -> None:
        """Draw the images."""
        if self.bits > 0:
            self.memory["images"] = s.images("train", self.images, s.generator)

    @torch.no_grad()
    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy, calibrated and rounded."""
        if self.bits == 0:
            return model
        deployed = copy.deepcopy(model)
        with frozen_statistics(deployed):
            ranges = _ranges(deployed, self.memory["images"])
        for rounding, (low, high) in ranges.items():
            rounding.calibrate(low, high)
        for module in deployed.modules():
            if isinstance(module, RoundedLayer):
                weight = module.layer.weight
                assert isinstance(weight, Tensor)
                weight.copy_(rounded_weight(weight, self.bits))
        return deployed


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """A weight (out, ...) on the grid of whole numbers of so many bits, symmetric about 0, a scale for each output."""
    most = 2 ** (bits - 1) - 1
    weight = weight.detach()
    scale = weight.flatten(1).abs().amax(1).float() / most
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    out: Tensor = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -most, most)
    return out.to(weight.dtype)


@torch.no_grad()
def _ranges(model: nn.Module, images: Tensor) -> dict[Rounding, tuple[Tensor, Tensor]]:
    """Smallest and largest value that each rounding gets.

    Args:
        model: in eval mode; nothing in it is calibrated yet.
        images: (N, C, H, W).
    """
    found: dict[Rounding, tuple[Tensor, Tensor]] = {}

    def look(layer: nn.Module, given: Tensor) -> None:
        assert isinstance(layer, Rounding)
        low, high = given.float().aminmax()
        before = found.get(layer, (low, high))
        found[layer] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    show(model, Rounding, look, images)
    return found
