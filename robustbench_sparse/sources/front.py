"""What stands around a network from elsewhere: normalisation, the logits of its output, the classes that are meant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustbench_sparse.models.base import Normalise
from robustbench_sparse.sources.preparation import Numbers


class Fronted(nn.Sequential):
    """A normalisation and behind it the network, as ``normalise`` and ``network``."""


class Logits(nn.Module):
    """The ``logits`` of a network of transformers, which answers with several things by name.

    Args:
        network: takes images as ``pixel_values``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        out: Tensor = self.network(pixel_values=x).logits
        return out


class Chosen(nn.Module):
    """Some of a network's logits, in an order of their own.

    Args:
        indices: of the network's logits; one for every class of the data set.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(list(indices), dtype=torch.int64))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B, N) -> those of the classes meant (B, K)."""
        return logits.index_select(1, self.indices)


def fronted(model: nn.Module, mean: Numbers | None, std: Numbers | None) -> nn.Module:
    """A network with a normalisation in front; the one that a source had put there goes. None: without any."""
    inner = network_of(model)
    if mean is None or std is None:
        return inner.eval()
    return Fronted(OrderedDict(normalise=Normalise(mean, std), network=inner)).eval()


def network_of(model: nn.Module) -> nn.Module:
    """The network behind the normalisation that a source had put in front of it."""
    return model.get_submodule("network") if isinstance(model, Fronted) else model


def front_of(model: nn.Module) -> Normalise | None:
    """The normalisation at a network's head, whoever put it there; None where there is none that is known."""
    parts = list(model.modules())[:6] if isinstance(model, nn.Sequential) else []
    return next((m for m in parts if isinstance(m, Normalise)), None)


def choosing(model: nn.Module, indices: Sequence[int]) -> nn.Module:
    """A network that answers with these of its logits, in this order."""
    return nn.Sequential(OrderedDict(model=model, classes=Chosen(indices))).eval()


def in_parts(call: Callable[[Tensor], Tensor], x: Tensor, fixed: int | None) -> Tensor:
    """The answers (B, K) of something that takes ``fixed`` images at a time, no more and no fewer; None: any number.

    A last part that is too short is filled up with its first image.
    """
    if fixed is None or len(x) == fixed:
        return call(x)
    out = []
    for part in torch.split(x, fixed):
        missing = fixed - len(part)
        given = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
        out.append(call(given)[: len(part)])
    return torch.cat(out)
