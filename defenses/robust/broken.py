"""Networks broken on purpose: they look robust to some attacks, and are not.

Whoever judges robustness has to break or flag each of them (Carlini et al. 2019, https://arxiv.org/abs/1902.06705).
Their kinds are those of Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420: gradients
that are shattered (missing or wrong), stochastic, or vanishing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from attacks.base import RandomModule, check
from defenses.base import Defense, Make, Step
from defenses.robust.draws import BatchRandom

How = Literal[
    "none",
    "scaled_logits",
    "quantised_input",
    "gradient_killer",
    "k_wta",
    "sigmoid_outputs",
    "batch_noise",
    "noise",
    "constant_gradient",
    "jpeg",
]
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.GELU, nn.Softplus, nn.LeakyReLU)

# Quantisation tables for quality 50: ITU-T T.81 (1992), Annex K, tables K.1 (luminance) and K.2 (chrominance).
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


class Around(nn.Module):
    """A network between a part that sees its images and a part that sees its logits; (B, C, H, W) -> (B, K)."""

    def __init__(self, before: nn.Module, network: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.network, self.after = before, network, after

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        out: Tensor = self.after(self.network(self.before(x)))
        return out


class ScaledLogits(nn.Module):
    """Logits times a large number in eval mode: vanishing gradients; (B, K) -> (B, K).

    The softmax becomes 1 for one class and 0 for all others to the last bit of float32, and the gradient of the
    cross-entropy, softmax minus label, exactly 0 wherever the network is right by 104 / scale or more. A loss that
    does not depend on the logits' scale, such as DLR (Croce and Hein 2020, https://arxiv.org/abs/2003.01690), is not
    impressed.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        """Scale."""
        return z if self.training else z * self.scale


class SigmoidOutputs(nn.Module):
    """sigmoid(scale * logits) in eval mode: vanishing gradients; (B, K) -> (B, K) in [0, 1].

    Read as logits such outputs bound the cross-entropy, and a saturated sigmoid has slope 0: the own class cannot
    be pushed down. In float32 it is 1 from 17 on, so two classes may tie there; the first of them wins. Networks
    published with a sigmoid last have this fault in a milder form. Bfloat16, which ties far sooner, goes out as
    float32.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        """Squash."""
        return z if self.training else _squashed(z, self.scale)


class Staircase(nn.Module):
    """Pixels rounded to multiples of 1 / steps in eval mode: shattered gradients; (B, C, H, W) -> the same.

    The slope is 0 at almost every point, so every gradient attack stands still. With few steps this is the defense
    by quantisation or thermometer code; with many it changes nothing but the gradient. An attack that takes
    the staircase for the identity on the way back (BPDA: Athalye et al. 2018, section 4.1) or asks for no gradient
    walks through.
    """

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Round, halves upwards."""
        return x if self.training else torch.floor(x * self.steps + 0.5) / self.steps


class ConstantGradient(nn.Module):
    """The identity whose gradient is 1 for every pixel in eval mode: a wrong gradient; (B, C, H, W) -> the same.

    Neither zero nor missing, hence seen by no check for those: attacks make every pixel brighter, whatever the
    image. That is the shattered gradient of Athalye et al. 2018 in its incorrect form.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pass through."""
        return x if self.training else _with_constant_gradient(x)


class BatchNoise(RandomModule):
    """x + share * std(whole batch) * N(0, I) in eval mode: stochastic gradients; (B, C, H, W) -> the same.

    As in the published EnResNet code, an image's prediction depends on the images beside it: attacked in one batch
    and judged in another it meets another network. The gradient takes the std for a number.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Add noise."""
        if self.training:
            return x
        return x + self.share * x.detach().std() * self.draw(x)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the noise source behind: none must share or fork a training stream."""
        return {key: value for key, value in self.__dict__.items() if key != "noise_source"}


class InputNoise(RandomModule):
    """x + std * N(0, I) in eval mode: stochastic gradients; (B, C, H, W) -> the same.

    One draw's gradient is not that of the next, so an attack that takes one a step wanders, and a verdict on one draw
    is luck. Averaging gradients over draws (EOT: Athalye et al. 2018, section 4.2) undoes most of it. The noisy
    pixels are not clamped.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Add noise."""
        return x if self.training else x + self.std * self.draw(x)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the noise source behind: none must share or fork a training stream."""
        return {key: value for key, value in self.__dict__.items() if key != "noise_source"}


class KWinners(nn.Module):
    """k winners take all: an image's largest activations stay as they are, the others become 0; any (B, ...).

    Xiao, Zhong, Zheng 2020, https://arxiv.org/abs/1905.10510. At every change of winners the network jumps, so
    gradients, right at their own point, say little about the next: shattered, in training as well.

    Args:
        share: the paper's gamma; of an image's n activations, over all channels and positions, floor(share * n)
            win, at least one. Among equals the choice is torch.topk's.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Keep the winners."""
        return _winners(x, self.share)


class Jpeg(nn.Module):
    """JPEG coding and decoding of the images in eval mode: shattered gradients; (B, C, H, W) -> the same in [0, 1].

    Coefficients are rounded, so the gradient is zero (broken by BPDA in Athalye et al. 2018). As in
    ITU-T T.81: blocks of 8x8 pixels, edges repeated to fill them up, DCT-II, division by the tables of Annex K.
    Colour is not subsampled, pixels are not rounded to whole grey levels, and the lossless part is left out.

    Args:
        quality: in [1, 100]; scales the tables as the Independent JPEG Group's library does. 100 divides by 1.
    """

    dct: Tensor
    tables: Tensor
    to_planes: Tensor
    to_colours: Tensor

    def __init__(self, quality: float) -> None:
        super().__init__()
        self.quality = quality
        percent = math.floor(5000 / quality if quality < 50 else 200 - 2 * quality)
        tables = torch.tensor((LUMINANCE, CHROMINANCE), dtype=torch.float64)
        tables = ((tables * percent + 50) / 100).floor().clamp(1, 255)
        frequency, place = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        dct = torch.cos(math.pi / 8 * (place + 0.5).double() * frequency) / 2
        dct[0] /= math.sqrt(2)
        # JFIF's Y, Cb, Cr of R, G, B in [0, 255], without the offset of 128.
        to_planes = torch.tensor(
            ((0.299, 0.587, 0.114), (-0.299, -0.587, 0.886), (0.701, -0.587, -0.114)), dtype=torch.float64
        ) / torch.tensor(((1.0,), (1.772,), (1.402,)), dtype=torch.float64)
        for name, value in (("dct", dct), ("tables", tables), ("to_planes", to_planes)):
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("to_colours", torch.linalg.inv(to_planes).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Code and decode."""
        return x if self.training else _coded(x, self.dct, self.tables, self.to_planes, self.to_colours)


class _ConstantGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ones_like(grads[0])


# One step each to a tracer, which cannot follow what depends on shapes: the network around stays foldable.


@fx.wrap
def _with_constant_gradient(x: Tensor) -> Tensor:
    out: Tensor = _ConstantGradient.apply(x)
    return out


@fx.wrap
def _squashed(z: Tensor, scale: float) -> Tensor:
    return torch.sigmoid(z.to(torch.promote_types(z.dtype, torch.float32)) * scale)


@fx.wrap
def _winners(x: Tensor, share: float) -> Tensor:
    rows = x.flatten(1)
    count = max(1, int(share * rows.shape[1]))
    wins = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(count, dim=1).indices, True)
    return torch.where(wins, rows, 0).view(x.shape)


@fx.wrap
def _coded(x: Tensor, dct: Tensor, tables: Tensor, to_planes: Tensor, to_colours: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    dct, tables, to_planes, to_colours = (t.to(wide) for t in (dct, tables, to_planes, to_colours))
    c, h, w = x.shape[1:]
    # Autocast would run the products in bfloat16, which cannot tell 256 grey levels apart.
    with torch.autocast(x.device.type, enabled=False):
        planes = 255 * x.to(wide)
        if c == 3:
            planes = torch.einsum("pc,bchw->bphw", to_planes, planes)
        # The offset of 128 is Y's alone: Cb and Cr lie around 0 as they are.
        offset = planes.new_tensor((128, 0, 0) if c == 3 else (128,)).view(-1, 1, 1)
        planes = F.pad(planes - offset, (0, -w % 8, 0, -h % 8), mode="replicate")
        rows, columns = planes.shape[2] // 8, planes.shape[3] // 8
        blocks = planes.reshape(-1, c, rows, 8, columns, 8).transpose(3, 4)
        table = (tables[[0, 1, 1]] if c == 3 else tables[:1]).view(-1, 1, 1, 8, 8)
        rounded = torch.round(dct @ blocks @ dct.T / table) * table
        planes = (dct.T @ rounded @ dct).transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :h, :w] + offset
        if c == 3:
            planes = torch.einsum("cp,bphw->bchw", to_colours, planes)
        return (planes / 255).clamp(0, 1).to(x.dtype)


_DEFAULTS = {
    "scaled_logits": 1000.0,
    "quantised_input": 8.0,
    "gradient_killer": 4096.0,
    "k_wta": 0.2,
    "sigmoid_outputs": 2.0,
    "batch_noise": 0.3,
    "noise": 0.1,
    "jpeg": 75.0,
}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "quantised_input": (lambda s: 1 <= s < math.inf, "a finite number >= 1"),
    "gradient_killer": (lambda s: 1 <= s < math.inf, "a finite number >= 1"),
    "k_wta": (lambda s: 0 < s <= 1, "a share in (0, 1]"),
    "jpeg": (lambda s: 1 <= s <= 100, "a quality in [1, 100]"),
}
_ANY_RANGE: tuple[Callable[[float], bool], str] = (lambda s: 0 < s < math.inf, "a finite number > 0")
_BEFORE: dict[str, Callable[[float], nn.Module]] = {
    "quantised_input": Staircase,
    "gradient_killer": Staircase,
    "batch_noise": BatchNoise,
    "noise": InputNoise,
    "constant_gradient": lambda _: ConstantGradient(),
    "jpeg": Jpeg,
}
_AFTER: dict[str, Callable[[float], nn.Module]] = {
    "scaled_logits": ScaledLogits,
    "sigmoid_outputs": SigmoidOutputs,
}


@dataclass(frozen=True, kw_only=True)
class Broken(Defense):
    """A network made to look robust without being it, so that the judge itself can be tested.

    Every kind but ``k_wta`` acts in eval mode only: the weights are those of natural training with the same seed.
    The plain network is then its ``network`` part.

    Args:
        how: ``none`` is the plain network. Each other kind fails in one way, told at its class:
            ``scaled_logits``, ``quantised_input``, ``gradient_killer``, ``k_wta``, ``sigmoid_outputs``,
            ``batch_noise``, ``noise``, ``constant_gradient`` or ``jpeg``.
        strength: how much of it; null takes the default. ``scaled_logits``: the factor, 1000.
            ``quantised_input``: steps from black to white, 8. ``gradient_killer``: the same, 4096, which moves
            no pixel by more than 0.04 / 255. ``k_wta``: the share of winners in (0, 1], 0.2.
            ``sigmoid_outputs``: the factor inside the sigmoid, 2; with more of it classes tie. ``batch_noise``:
            standard deviation in units of the batch's own, 0.3. ``noise``: standard deviation in units of the
            pixel range, 0.1. ``jpeg``: quality in [1, 100], 75. ``none`` and ``constant_gradient`` have none.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    how: How = "none"
    strength: float | None = None

    def __post_init__(self) -> None:
        check(self.how in get_args(How), "how", f"one of {', '.join(get_args(How))}", self.how)
        if self.strength is None:
            return
        check(self.how in _DEFAULTS, "strength", f"null with how: {self.how}", self.strength)
        fits, expected = _RANGES.get(self.how, _ANY_RANGE)
        check(fits(self.strength), "strength", f"{expected} with how: {self.how}", self.strength)

    def check(self, model: nn.Module) -> None:
        """k-winners-take-all needs activation modules to stand in for."""
        if self.how == "k_wta" and not any(isinstance(m, (KWinners, *ACTIVATIONS)) for m in model.modules()):
            raise ValueError(
                "how: expected a network with activation modules such as nn.ReLU, which k_wta replaces, got "
                f"{type(model).__name__} without any"
            )

    @property
    def divides(self) -> bool:
        """Unless the noise is as large as the whole batch's standard deviation."""
        return self.how != "batch_noise"

    def wrap(self, make: Make) -> Make:
        """A factory of the broken network."""
        if self.how == "none":
            return make
        strength = _DEFAULTS.get(self.how, 0.0) if self.strength is None else self.strength

        def broken() -> nn.Module:
            network = make()
            if self.how == "k_wta":
                return _with_winners(network, strength)
            before, after = _BEFORE.get(self.how), _AFTER.get(self.how)
            return Around(
                before(strength) if before else nn.Identity(),
                network,
                after(strength) if after else nn.Identity(),
            )

        return broken

    def begin(self, s: Step) -> None:
        """Where training looks at the network in eval mode, its noise comes from this defense's own stream."""
        for m in s.model.modules():
            if isinstance(m, BatchNoise | InputNoise):
                m.noise_source = BatchRandom(s.generator, part=s.part)

    def deploy(self, model: nn.Module) -> nn.Module:
        """The model itself; one with noise is copied, so that its source is free to be bound by its judge."""
        return copy.deepcopy(model) if self.how in ("batch_noise", "noise") else model


def _with_winners(module: nn.Module, share: float) -> nn.Module:
    """Replace every activation of a network, in place; an activation itself comes back replaced."""
    if isinstance(module, ACTIVATIONS):
        return KWinners(share)
    for name, child in list(module._modules.items()):  # a child under two names is met under both
        if child is not None:
            setattr(module, name, _with_winners(child, share))
    return module
