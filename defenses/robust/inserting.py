"""Steps put before parts of a network when it is built, and a look at what each of them gets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.base import Silence, noise_from

PART = 256  # images in one forward pass

Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


def inserted(network: nn.Module, before: Kinds, around: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put a step before every part of some kinds, in place.

    Args:
        network: changed in place; where it is such a part itself, it comes back behind a step.
        before: kinds of the parts.
        around: a part -> the module that takes its place, its step first. A part that is used at several places gets
            one.
    """
    return _inserted(network, before, around, {})


def _inserted(
    module: nn.Module,
    before: Kinds,
    around: Callable[[nn.Module], nn.Module],
    known: dict[nn.Module, nn.Module],
) -> nn.Module:
    if isinstance(module, before):
        if module not in known:
            known[module] = around(module)
        return known[module]
    made = set(known.values())
    for name, child in list(module._modules.items()):  # a child under two names is met under both
        if child is not None and child not in made:
            setattr(module, name, _inserted(child, before, around, known))
    return module


@torch.no_grad()
def show(model: nn.Module, steps: Kinds, look: Callable[[nn.Module, Tensor], None], images: Tensor) -> None:
    """Send images through a network without its noise, and let ``look`` see what each step gets.

    Args:
        model: in eval mode.
        steps: their kinds.
        look: called with a step and its input, for every pass of ``PART`` images.
        images: (N, C, H, W).
    """

    def hook(step: nn.Module, args: tuple[Tensor, ...]) -> None:
        look(step, args[0].detach())

    handles = [m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, steps)]
    try:
        with noise_from(model, Silence()):
            for part in torch.split(images, PART):
                model(part)
    finally:
        for handle in handles:
            handle.remove()
