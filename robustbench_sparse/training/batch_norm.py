"""Batch-norm over a minibatch that several processes share: its statistics are those of the whole."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_sparse.training.parallel import Several


def synchronise(model: nn.Module, ranks: Several) -> None:
    """Let the batch-norm layers of a network normalise by whole minibatches within ``ranks.together``.

    The layers keep their class, parameters and buffers; outside a step, and by running statistics, they are as they
    were. torch's own ``SyncBatchNorm`` knows no CPU.
    """

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        if ranks.syncing and (self.training or self.running_mean is None):
            return _normalised(self, x, ranks)
        out: Tensor = type(self).forward(self, x)
        return out

    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.forward = types.MethodType(forward, m)  # type: ignore[method-assign]


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps), scaled and shifted, with the moments of all processes' x, and its gradient.

    dL/dx = w / sqrt(var + eps) * (g - mean(g) - z mean(g z)), g the gradient of the output, z the normalised x, means
    over all processes (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3). The scale's and the
    shift's gradients are this process's share, as those of all other parameters are.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Several
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.new_tensor([x.numel() // x.shape[1]])
        parts = ranks.each(torch.cat([count, *torch.batch_norm_update_stats(x, None, None, 0.0)]))
        counts, (means, variances) = parts[:, :1], parts[:, 1:].chunk(2, 1)
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        # Of the parts' own variances: a difference of squares would cancel where the mean is large.
        variance = (counts * (variances + (means - mean).square())).sum(0) / n
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, variance, n)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, n = ctx.saved_tensors
        # By fixed moments, in one sweep of torch's; what the moments add comes below.
        ones = torch.ones_like(mean) if weight is None else weight
        plain, along, total = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, ones, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        along_all, total_all = ctx.ranks.sum(torch.cat([along, total])).chunk(2)
        scale = torch.rsqrt(variance + ctx.eps)
        slope = ones * scale * scale * along_all / n
        shift = ones * scale * total_all / n - slope * mean
        shape = [1, -1, *[1] * (x.ndim - 2)]
        gradient = torch.addcmul(plain - shift.view(shape), x, slope.view(shape), value=-1)
        return gradient, *((None, None) if weight is None else (along, total)), None, None


def _normalised(layer: _BatchNorm, x: Tensor, ranks: Several) -> Tensor:
    """What a layer gives for this process's part of a minibatch, (B, C, ...); its statistics take note of all of it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    out, mean, variance, n = _Normalise.apply(wide, layer.weight, layer.bias, layer.eps, ranks)
    _record(layer, mean, variance, n)
    normalised: Tensor = out.to(x.dtype)
    return normalised


@torch.no_grad()
def _record(layer: _BatchNorm, mean: Tensor, variance: Tensor, n: Tensor) -> None:
    """Running statistics, as ``_BatchNorm.forward`` keeps them."""
    if not (layer.training and layer.track_running_stats) or layer.running_mean is None:
        return
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    unbiased = variance * (n / (n - 1).clamp_min(1))
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), share)
