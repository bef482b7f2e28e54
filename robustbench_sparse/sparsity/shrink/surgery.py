"""Removing dead channels for real, with torch-pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900).

torch-pruning knows which layers share a width; ``liveness`` says which of those channels no one needs. A channel goes
only where all of them agree, so that the network stays the same function.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import RandomModule, Silence, noise_from
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.sparsity.shrink.liveness import MIXING, NORMS, Liveness, liveness

EXTRA = "pip install 'robustbench_sparse[shrink]'"


class MissingExtra(UserError):
    """A package of the extra ``shrink`` is not installed."""


@dataclass(frozen=True)
class Shrunk:
    """A network without its dead channels.

    Attributes:
        model: a copy in eval mode, on the device of the network it was made from.
        removed: outputs before and after, of every layer that lost some, by name.
        notes: what a reader should know.
    """

    model: nn.Module
    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cut:
    """One group of layers of a common width, and what goes: ``run`` removes it, ``folds`` holds (reader, inputs)."""

    run: Callable[[], object]
    folds: list[tuple[str, Tensor]]


def shrink_network(model: nn.Module, example: Tensor) -> Shrunk:
    """Remove what is dead; the argument stays as it is.

    Dead is an output that is zero for every image, and one that no layer reads; also one that is constant, where
    all its readers can take the constant into their bias exactly: linear layers, and convolutions without padding.
    What these leave without a reader is dead, too. Of a layer's outputs at least one stays.

    Args:
        model: the network; it is looked at in eval mode.
        example: at least one image (B, C, H, W), for its shape.

    Raises:
        MissingExtra: torch-pruning is not installed.
        UserError: a network whose forward pass cannot be traced.
    """
    pruning = torch_pruning()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    small = copy.deepcopy(model).eval().cpu().to(memory_format=torch.contiguous_format).requires_grad_(True)
    like = next((p for p in small.parameters()), torch.empty(0))
    x = example[:1].detach().cpu().to(like.dtype).contiguous().repeat(2, 1, 1, 1)
    live = liveness(small, x)
    before = _outputs(small)
    cuts = _cuts(pruning, small, x, live)
    for cut in cuts:
        for name, inputs in cut.folds:
            _fold(small.get_submodule(name), inputs, live.constant[name])
    for cut in cuts:
        cut.run()
    after = _outputs(small)
    removed = {n: (before[n], after[n]) for n in before if before[n] != after[n]}
    notes = []
    if any(isinstance(m, RandomModule) for m in small.modules()):
        notes.append(
            "the strength of the noise depends on every channel it is added to: channels were removed only "
            "between two places where noise is added"
        )
    return Shrunk(small.eval().to(device), removed, tuple(notes))


def torch_pruning() -> ModuleType:
    """The library; MissingExtra where it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        raise MissingExtra(f"torch-pruning is not installed: {EXTRA}") from None
    module: ModuleType = torch_pruning
    return module


def _outputs(model: nn.Module) -> dict[str, int]:
    return {name: len(m.weight) for name, m in model.named_modules() if isinstance(m, MIXING)}


def _cuts(pruning: ModuleType, model: nn.Module, x: Tensor, live: Liveness) -> list[_Cut]:
    """All groups are worked out before anything is removed: they share no dimension of any weight."""
    if not live.needed:
        return []
    names = {module: name for name, module in model.named_modules()}
    graph = pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad(), noise_from(model, Silence()):
        warnings.simplefilter("ignore")
        graph.build_dependency(model, example_inputs=(x,), verbose=False)
    cuts: list[_Cut] = []
    seen: set[str] = set()
    for name in live.needed:
        layer = model.get_submodule(name)
        if name in seen or layer not in graph.module2node:
            continue
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        whole = graph.get_pruning_group(layer, prune, list(range(len(layer.weight))))  # type: ignore[arg-type]
        dead = _dead(graph, whole, names, live, seen)
        if dead is None or not bool(dead.any()):
            continue
        if bool(dead.all()):
            dead[0] = False
        group = graph.get_pruning_group(layer, prune, dead.nonzero().flatten().tolist())
        folds = [
            (names[dep.target.module], torch.tensor(inputs))
            for dep, inputs in group
            if dep.target.module in names and _reads(graph, dep)
        ]
        cuts.append(_Cut(group.prune, folds))
    return cuts


def _reads(graph: Any, dep: Any) -> bool:
    """Whether a group holds inputs of this layer, not outputs."""
    return isinstance(dep.target.module, MIXING) and bool(graph.is_in_channel_pruning_fn(dep.handler))


def _dead(
    graph: Any, group: Any, names: dict[nn.Module, str], live: Liveness, seen: set[str]
) -> Tensor | None:
    """Which channels of a group no layer of it needs, bool (out,) by the first layer's numbers; None for none."""
    dead = torch.ones(len(group[0].idxs), dtype=torch.bool)
    for item in group:
        module, index, roots = item.dep.target.module, torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        name = names.get(module)
        if isinstance(module, MIXING):
            assert name is not None
            reads = _reads(graph, item.dep)
            if not reads:
                seen.add(name)
            needs = (live.read if reads else live.needed).get(name)
            # Not understood by one of the two, or only a part of the layer is meant, as behind a concatenation.
            if needs is None or len(needs) != len(index) or len(set(item.idxs)) != len(index):
                return None
            dead[roots[needs[index]]] = False
            continue
        other = name is not None and not isinstance(module, NORMS)
        if other or isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp":
            return None
    return dead


@torch.no_grad()
def _fold(layer: nn.Module, inputs: Tensor, constant: Tensor) -> None:
    """Take constant inputs that are about to go into the layer's bias."""
    assert isinstance(layer, MIXING)
    value = constant[inputs]
    known = value.isfinite() & (value != 0)
    if not bool(known.any()):
        return
    assert layer.bias is not None
    weight = layer.weight.double()
    summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    added = summed[:, inputs[known]] @ value[known]
    layer.bias.copy_((layer.bias.double() + added).to(layer.bias.dtype))
