"""Counting zeros, weights and multiplications in the network that is judged.

The network has to hold the weights read back from the saved file: what was trained, claimed or meant counts
for nothing. The one denominator is ``defenses.base.prunable``, the weights W (out, in/groups, ...) of
convolutions and linear layers; biases and batch-norm have no part in a sparsity, but they are parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import noise_from
from defenses.base import ZERO_CHANNEL, frozen_statistics, prunable


def count_sparsity(model: nn.Module, channels: int, size: int) -> dict[str, Any]:
    """Count a network.

    Args:
        model: the deployed network with the weights of the saved file.
        channels: channels of an image.
        size: height and width of an image in pixels.

    Returns:
        Plain values, ready for JSON: the percentages of ``shares_of``; ``parameters`` and
        ``nonzero_parameters``, which count biases and batch-norm too; ``macs``, see ``count_macs``;
        ``sparse_macs``, the same without multiplications by a zero weight; and ``layers``, the counts of each
        layer of ``count_layers`` with its ``macs`` and ``sparse_macs``.
    """
    uses = _uses(model, channels, size)
    layers = [
        {
            **layer,
            "macs": uses[layer["name"]] * layer["weights"],
            "sparse_macs": uses[layer["name"]] * (layer["weights"] - layer["zero_weights"]),
        }
        for layer in count_layers(model)
    ]
    return {
        **count_zeros(model, layers),
        "macs": sum(layer["macs"] for layer in layers),
        "sparse_macs": sum(layer["sparse_macs"] for layer in layers),
        "layers": layers,
    }


def count_zeros(model: nn.Module, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What can be counted without an image: ``shares_of`` of the layers counted, parameters, and those not zero."""
    parameters = list(model.parameters())
    return {
        **shares_of(layers),
        "parameters": sum(p.numel() for p in parameters),
        "nonzero_parameters": sum(int(p.count_nonzero()) for p in parameters),
    }


def count_layers(model: nn.Module) -> list[dict[str, Any]]:
    """Name, kind, shape and counts of every prunable layer; a linear layer has no channels and kernels."""
    return [_layer(name, model.get_submodule(name), w) for name, w in _weights(model)]


def count_macs(model: nn.Module, channels: int, size: int) -> int:
    """Multiply-accumulates of one image in convolutions and linear layers, multiplications by zero included.

    Counted during one forward pass in eval mode: a layer that is called twice counts twice, and a kernel's weights
    that lie on the zeros around an image count, too. Bias, batch-norm and activations are left out, as is usual.
    The network and the global random streams stay as they were.
    """
    uses = _uses(model, channels, size)
    return sum(uses[name] * w.numel() for name, w in _weights(model))


def _uses(model: nn.Module, channels: int, size: int) -> dict[str, int]:
    """How often one image meets each weight of a layer, by the layer's name: the pixels of its output."""
    uses = {name: 0 for name, _ in _weights(model)}

    def add(name: str, outputs: int, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        uses[name] += out.numel() // outputs

    handles = [
        model.get_submodule(name).register_forward_hook(partial(add, name, len(w)))
        for name, w in _weights(model)
    ]
    like = next(model.parameters(), torch.empty(0))
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with (
            torch.no_grad(),
            frozen_statistics(model),
            torch.random.fork_rng(devices),
            noise_from(model, None),
        ):
            model(torch.zeros(1, channels, size, size, device=like.device, dtype=like.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return uses


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Name of every layer with a prunable weight, and the weight."""
    return [(name.removesuffix("weight").removesuffix("."), w) for name, w in prunable(model).items()]


def shares_of(layers: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The sparsities in percent, over all layers together; None where there is nothing of the kind.

    Args:
        layers: the counts of ``count_layers``.

    Returns:
        ``weight_sparsity``: zero weights. ``linear_sparsity``: zero weights of linear layers alone.
        ``channel_sparsity``: input channels W[:, g] of convolutions of l2 norm below 1e-15.
        ``kernel_sparsity``: kernels W[o, i] of convolutions that are zero. ``row_sparsity``: outputs whose
        weights W[o] are all zero, neurons of linear layers and filters of convolutions alike.
    """
    out: dict[str, float | None] = {}
    linear = [layer for layer in layers if layer["kind"] == "Linear"]
    for share, kind, counted in (
        ("weight", "weight", layers),
        ("linear", "weight", linear),
        ("channel", "channel", layers),
        ("kernel", "kernel", layers),
        ("row", "row", layers),
    ):
        whole = sum(layer[f"{kind}s"] for layer in counted)
        zeros = sum(layer[f"zero_{kind}s"] for layer in counted)
        out[f"{share}_sparsity"] = 100 * zeros / whole if whole else None
    return out


def _layer(name: str, module: nn.Module, weight: Tensor) -> dict[str, Any]:
    w = weight.detach()
    counts: dict[str, int | float] = {
        "weights": w.numel(),
        "zero_weights": w.numel() - int(w.count_nonzero()),
        "channels": 0,
        "zero_channels": 0,
        "kernels": 0,
        "zero_kernels": 0,
        "l1_norm": w.double().abs().sum().item(),
        "rows": w.shape[0],
        "zero_rows": _zero_groups(w.flatten(1)),
    }
    if not isinstance(module, nn.Linear):
        groups = module.groups
        assert isinstance(groups, int)
        kernels = w.flatten(2)  # (out, in/groups, k*k)
        # Filters read the input channels of their own group only: (groups, out/groups, in/groups, k*k).
        split = kernels.reshape(groups, -1, *kernels.shape[1:])
        norms = split.square().sum((1, 3)).sqrt()
        counts["channels"] = norms.numel()
        counts["zero_channels"] = int((norms < ZERO_CHANNEL).sum())
        counts["kernels"] = kernels.shape[0] * kernels.shape[1]
        counts["zero_kernels"] = _zero_groups(kernels.flatten(0, 1))
    return {"name": name, "kind": type(module).__name__, "shape": list(w.shape), **counts}


def _zero_groups(groups: Tensor) -> int:
    """How many rows of (G, n) are zero throughout."""
    return int((groups.count_nonzero(1) == 0).sum())
