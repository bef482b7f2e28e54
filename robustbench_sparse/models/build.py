"""Networks built as a run says: wrapped by its defenses, initialised from its seed."""

from __future__ import annotations

import torch
from torch import nn

from defenses.base import Defense, Make
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.models.base import ModelSpec


def build_network(
    spec: ModelSpec, defenses: list[Defense], channels: int, size: int, classes: int | None, seed: int
) -> nn.Module:
    """The network to train, wrapped by the defenses, initialised from the seed's stream ``init``.

    Args:
        spec: the network's architecture.
        defenses: in the order of the config; each may wrap the network.
        channels, size: of the images.
        classes: of the data set; None for a network that restores images.
        seed: the run's.

    Raises:
        ValueError: when model, data and defenses do not fit together.
    """

    def plain() -> nn.Module:
        return spec.build(channels, size, classes)

    make: Make = plain
    for defense in defenses:
        make = defense.wrap(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        model = make()
    for defense in defenses:
        defense.check(model)
    return model


def has_weights(model: nn.Module) -> bool:
    """Whether there is anything to train; the identity has nothing."""
    return next(model.parameters(), None) is not None


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, its convolutions' weights channels-last: faster on CPUs and GPUs alike."""
    moved: nn.Module = model.to(device).to(memory_format=torch.channels_last)
    return moved
