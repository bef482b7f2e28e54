"""EnResNet: noise after every residual block, several networks averaged; Dinh 4.2.1.

Wang et al. 2018, https://arxiv.org/abs/1811.10745.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import LATER, RandomModule, check
from defenses.base import Defense, Make, Step
from defenses.robust.counted_noise import Counters, drawn, gradient, noised
from defenses.robust.draws import BatchRandom

Scale = Literal["sample", "batch"]
Draws = Literal["streams", "counters"]


class Noise(RandomModule):
    """x + a * std(x) * N(0, I), in training and at test.

    Args:
        a: strength of the noise relative to the standard deviation.
        scale: std over each image's values (``sample``) or over the whole batch tensor (``batch``).
        draws: see ``EnResNet``.
    """

    def __init__(self, a: float, scale: Scale, draws: Draws = "streams") -> None:
        super().__init__()
        self.a, self.scale, self.draws = a, scale, draws

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        counters = self.counters(len(x)) if self.draws == "counters" else None
        z = self.draw(x) if counters is None else counters
        out: Tensor = _AddNoise.apply(x, z, self.a, self.scale)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the noise source behind: none must share or fork a training stream."""
        return {key: value for key, value in self.__dict__.items() if key != "noise_source"}


class _AddNoise(torch.autograd.Function):
    """x + a * std(x) * z with the gradient through the std: d std / dx = (x - mean) / ((n - 1) std).

    Written by hand since the noise stands behind every block: composed of single operations it makes twice as
    many passes over the memory. A constant x, as a dead block yields, gets no noise, and the gradient of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | Counters, a: float, scale: Scale) -> Tensor:
        made = noised(x, z, a) if isinstance(z, tuple) and scale == "sample" and a > 0 else None
        ctx.a, ctx.scale, ctx.compiled = a, scale, made is not None
        if made is not None:
            out, z, *moments = made
            ctx.moments = moments
        else:
            z = drawn(x, z) if isinstance(z, tuple) else z
            if (
                z.stride() != x.stride()
            ):  # one pass now, instead of two operands in different order ever after
                z = torch.empty_like(x).copy_(z)
            ctx.moments = _moments(x, scale)
            out = torch.addcmul(x, (a * ctx.moments[1]).to(x.dtype), z)
        ctx.save_for_backward(x, z)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x, z), (grad,) = ctx.saved_tensors, grads
        mean, std = ctx.moments
        if ctx.compiled and not torch.is_grad_enabled():
            quick = gradient(grad, x, z, (mean, std), ctx.a)
            if quick is not None:
                return quick, None, None, None
        # Where a second derivative is asked for, it has to know how they depend on x.
        if ctx.compiled or torch.is_grad_enabled():
            mean, std = _moments(x, ctx.scale, differentiable=torch.is_grad_enabled())
        shared = [d for d in range(x.ndim) if std.shape[d] == 1]
        n = math.prod(x.shape[d] for d in shared)
        along = (grad * z).sum(shared, keepdim=True).to(std.dtype)
        alive = std > 0
        slope = ctx.a * along / (torch.where(alive, std, 1) * max(n - 1, 1)) * alive
        out = torch.addcmul(grad, slope.to(x.dtype), x).sub_((slope * mean).to(x.dtype))
        return out, None, None, None


def _moments(x: Tensor, scale: Scale, differentiable: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and std (from n - 1) of each image, (B, 1, ...), or of the batch, (1, 1, ...); float32 at least."""
    in_order = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    rows = (x.permute(0, 2, 3, 1) if in_order else x).reshape(len(x), -1)
    count, wide = rows.shape[1], torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and not differentiable:
        # On its way layer norm computes just these, ten times as fast as torch.var and as safe from
        # cancellation. The weight of ones makes it report those of bf16 in float32.
        ones = torch.ones(count, dtype=wide)
        _, mean, inverse = torch.native_layer_norm(rows, [count], ones, None, 0.0)
        variance = inverse.pow(-2)
    else:
        variance, mean = torch.var_mean(rows.to(wide), dim=1, correction=0, keepdim=True)
    if scale == "batch":  # of rows of one length: the mean of their variances and the variance of their means
        variance, mean = variance.mean(0, True) + mean.var(0, correction=0, keepdim=True), mean.mean(0, True)
        count *= len(x)
    variance = (variance * (count / max(count - 1, 1))).view(-1, *[1] * (x.ndim - 1))
    alive = variance > 0  # the root's slope at 0 is infinite
    return mean.view_as(variance), torch.where(alive, variance, 1).sqrt() * alive


class NoisyBlock(nn.Module):
    """A residual block followed by noise."""

    def __init__(self, block: nn.Module, noise: Noise) -> None:
        super().__init__()
        self.block, self.noise = block, noise

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the block maps to, noise added."""
        out: Tensor = self.noise(self.block(x))
        return out


class Ensemble(nn.Module):
    """Mean of the logits of several networks; (B, C, H, W) -> (B, K).

    ``stochastic`` tells whether two passes on the same image may differ.
    """

    # A plain loop over the members. On 2 CPU cores, forward and backward of five ResNet-20s as one grouped network
    # took 2.0 (float32) and 1.1 (bf16) times as long as the loop at batch 128, 0.95 and 0.78 at batch 16;
    # torch.func.vmap 1.3 to 4 times as long. Not measured on a GPU.

    def __init__(self, members: list[nn.Module], stochastic: bool) -> None:
        super().__init__()
        self.members, self.stochastic = nn.ModuleList(members), stochastic

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (B, K)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


@dataclass(frozen=True, kw_only=True)
class EnResNet(Defense):
    """Ensemble of jointly trained residual networks with noise injected after every residual block.

    En_n ResNet (Dinh 4.2.1): out + a * std(out) * N(0, I) after each residual block, logits averaged over n
    networks. The noise stays on at test. Models mark their residual blocks by ``is_residual_block = True``.
    One member without noise is the plain network.

    Args:
        members: the paper's n, in [1, 1000].
        noise: the paper's a, finite and >= 0; 0 adds none.
        scale: ``sample`` takes the std of each image's own values; ``batch`` that of the whole batch tensor,
            as published, which makes a prediction depend on the other images of the batch.
        draws: where the normal numbers come from. ``streams``: one after another from the image's stream (in training,
            the run's). ``counters``: from Philox counters under a key out of that stream, 16 random bits a number; for
            large tensors on a CPU at three fifths of the cost (docs/speed.md); numbers of nearly the same law
            (``attacks.philox``).
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    members: int = 2
    noise: float = 0.1
    scale: Scale = "sample"
    draws: Draws = field(default="streams", metadata=LATER)

    def __post_init__(self) -> None:
        check(1 <= self.members <= 1000, "members", "an integer in [1, 1000]", self.members)
        check(0 <= self.noise < math.inf, "noise", "a finite number >= 0", self.noise)
        check(self.scale in ("sample", "batch"), "scale", "'sample' or 'batch'", self.scale)
        check(self.draws in ("streams", "counters"), "draws", "'streams' or 'counters'", self.draws)

    def check(self, model: nn.Module) -> None:
        """Noise needs residual blocks to follow."""
        if self.noise > 0 and not any(getattr(m, "is_residual_block", False) for m in model.modules()):
            raise ValueError(
                "noise: expected a network with residual blocks (is_residual_block = True), as the noise "
                f"follows each of them, got {type(model).__name__} without any"
            )

    @property
    def divides(self) -> bool:
        """Unless the noise is as large as the whole batch's standard deviation."""
        return self.noise == 0 or self.scale == "sample"

    def wrap(self, make: Make) -> Make:
        """A factory of the ensemble: ``make`` is called once per member."""

        def ensemble() -> nn.Module:
            networks = [make() for _ in range(self.members)]
            if self.noise > 0:
                networks = [self._noisy(network) for network in networks]
            return Ensemble(networks, stochastic=self.noise > 0)

        return ensemble

    def begin(self, s: Step) -> None:
        """In training the noise comes from this defense's own stream."""
        for m in s.model.modules():
            if isinstance(m, Noise):
                m.noise_source = BatchRandom(s.generator, part=s.part)

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy whose noise source is free to be bound by whoever judges it."""
        return copy.deepcopy(model) if self.noise > 0 else model

    def _noisy(self, module: nn.Module) -> nn.Module:
        """Put noise behind every residual block of a network, in place; a block itself comes back wrapped."""
        for name, child in list(module.named_children()):
            setattr(module, name, self._noisy(child))
        if getattr(module, "is_residual_block", False):
            return NoisyBlock(module, Noise(self.noise, self.scale, self.draws))
        return module
