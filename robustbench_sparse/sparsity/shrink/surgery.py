"""Removing dead channels for real, with torch-pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900).

torch-pruning knows which layers share a width; ``liveness`` says which of those channels no one needs. A channel goes
only where all of them agree, so that the network stays the same function.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import RandomModule, Silence, noise_from
from robustbench_sparse.foundation.errors import MissingExtra, UserError, one_line
from robustbench_sparse.models.skips import SkipLayer
from robustbench_sparse.sparsity.shrink.calls import MIXING, NORMS
from robustbench_sparse.sparsity.shrink.liveness import Liveness, liveness

EXTRA = "shrink"  # whose packages are needed


@dataclass(frozen=True)
class Shrunk:
    """A network without its dead channels.

    Attributes:
        model: a copy in eval mode, on the device of the network it was made from.
        removed: outputs before and after, of every layer that lost some, by name; and skips, of layers that had
            some of strength 0.
        notes: what a reader should know.
    """

    model: nn.Module
    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class _Cuts:
    """What goes, in the numbers that channels have before anything goes.

    Attributes:
        removals: by layer, and whether inputs are meant: how the library removes them, and their numbers.
        folds: by reader: the inputs that go.
    """

    removals: dict[tuple[nn.Module, bool], tuple[Any, set[int]]] = field(default_factory=dict)
    folds: list[tuple[str, Tensor]] = field(default_factory=list)

    def run(self) -> None:
        """Remove it all, each layer's at once: a channel that goes moves those behind it."""
        for remove, numbers in self.removals.values():
            remove(sorted(numbers))


def shrink_network(model: nn.Module, example: Tensor, most: int | None = None) -> Shrunk:
    """Remove what is dead; the argument stays as it is.

    Dead is an output that is zero for every image, and one that no layer reads; also one that is constant, where
    all its readers can take the constant into their bias exactly: linear layers, and convolutions without padding.
    What these leave without a reader is dead, too. Of a layer's outputs at least one stays.

    Args:
        model: the network; it is looked at in eval mode.
        example: at least one image (B, C, H, W), for its shape.
        most: channels that all layers together may read and make; the library keeps a list entry for each of them in
            each group that they are in, and time grows with that. No bound if None.

    Raises:
        MissingExtra: torch-pruning is not installed.
        UserError: a network whose forward pass cannot be traced, one without weights, or one of more channels than
            ``most`` some of which are dead.
    """
    pruning = torch_pruning()
    if next(model.parameters(), None) is None:
        raise UserError("the network has no weights: there is nothing to remove")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    small = copy.deepcopy(model).eval().cpu().to(memory_format=torch.contiguous_format).requires_grad_(True)
    like = next((p for p in small.parameters()), torch.empty(0))
    x = example[:1].detach().cpu().to(like.dtype).contiguous().repeat(2, 1, 1, 1)
    before = _outputs(small)
    _drop_skips(small)
    live = liveness(small, x)
    if most is not None and _any_dead(live) and (count := _channels(small)) > most:
        raise UserError(f"{count} channels are read and made, more than the {most} that surgery is tried on")
    cuts = _cuts(pruning, small, x, live)
    for name, inputs in cuts.folds:
        _fold(small.get_submodule(name), inputs, live.constant[name])
    cuts.run()
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
        raise MissingExtra("torch-pruning", EXTRA) from None
    module: ModuleType = torch_pruning
    return module


def _outputs(model: nn.Module) -> dict[str, int]:
    """Outputs of every layer, and skips of every layer that may have some, by name."""
    skips = {name: m for name, m in model.named_modules() if isinstance(m, SkipLayer)}
    return {
        **{name: len(m.weight) for name, m in model.named_modules() if isinstance(m, MIXING)},
        **{f"{name}.skip".removeprefix("."): len(m.sources) for name, m in skips.items()},
    }


def _drop_skips(model: nn.Module) -> None:
    """Take out skips of strength 0: what they add is 0, and yet they would hold two layers to one width."""
    for m in model.modules():
        if isinstance(m, SkipLayer) and m.skip is not None:
            strengths = m.skip.tolist()
            m.keep([i for i, strength in zip(m.sources, strengths, strict=True) if strength != 0])


def _graph(pruning: ModuleType, model: nn.Module, x: Tensor) -> Any:
    """The library's graph of dependencies."""
    skips = [m.skip for m in model.modules() if isinstance(m, SkipLayer) and m.skip is not None]
    graph = pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad(), noise_from(model, Silence()):
        warnings.simplefilter("ignore")
        # It follows gradients, and would take a vector of factors for one entry per channel.
        for skip in skips:
            skip.requires_grad_(False)
        try:
            graph.build_dependency(model, example_inputs=(x,), verbose=False)
        except (Exception, SystemExit) as e:  # of the library's own, on a pass that it cannot follow
            raise UserError(f"torch-pruning cannot follow the network: {one_line(e)[:160]}") from None
        for skip in skips:
            skip.requires_grad_(True)
    return graph


def _group(graph: Any, layer: nn.Module, outputs: list[int]) -> Any:
    """The layers that share these outputs of a layer, and which of their channels they are.

    Raises:
        LookupError, ValueError, TypeError: the library has lost count of the channels, as where they are split.
    """
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, outputs)


def _cuts(pruning: ModuleType, model: nn.Module, x: Tensor, live: Liveness) -> _Cuts:
    """All groups of layers of a common width; no output of a layer is in two of them."""
    cuts = _Cuts()
    if not _any_dead(live):
        return cuts
    names = {module: name for name, module in model.named_modules()}
    graph = _graph(pruning, model, x)
    times = _times(live)
    seen: set[str] = set()
    for name in live.needed:
        layer = model.get_submodule(name)
        if name in seen or layer not in graph.module2node:
            continue
        try:
            whole = _group(graph, layer, list(range(len(layer.weight))))  # type: ignore[arg-type]
        except (LookupError, ValueError, TypeError):
            continue
        dead = _dead(graph, whole, names, live, times, seen)
        if dead is None or not bool(dead.any()):
            continue
        if bool(dead.all()):
            dead[0] = False
        for dep, numbers in _group(graph, layer, dead.nonzero().flatten().tolist()):
            module, reads = dep.target.module, _reads(graph, dep)
            if isinstance(module, (*MIXING, *NORMS)):
                cuts.removals.setdefault((module, reads), (dep, set()))[1].update(numbers)
            if reads:
                cuts.folds.append((names[module], torch.tensor(numbers)))
    return cuts


def _any_dead(live: Liveness) -> bool:
    """Whether any output of any layer is not needed: where none is, no group of layers can lose a channel."""
    return any(not bool(needed.all()) for needed in live.needed.values())


def _channels(model: nn.Module) -> int:
    """Channels that the layers read and make, all together."""
    return sum(sum(m.weight.shape[:2]) for m in model.modules() if isinstance(m, MIXING))


def _reads(graph: Any, dep: Any) -> bool:
    """Whether a group holds inputs of this layer, not outputs."""
    return isinstance(dep.target.module, MIXING) and bool(graph.is_in_channel_pruning_fn(dep.handler))


def _dead(
    graph: Any, group: Any, names: dict[nn.Module, str], live: Liveness, times: Tensor, seen: set[str]
) -> Tensor | None:
    """Which channels of a group no layer of it needs, bool (out,) by the first layer's numbers; None for none."""
    dead = torch.ones(len(group[0].idxs), dtype=torch.bool)
    own = live.channels.get(names[group[0].dep.target.module])
    met = 0
    for item in group:
        module, index, roots = item.dep.target.module, torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        name = names.get(module)
        if not isinstance(module, (*MIXING, *NORMS)):
            if name is not None or isinstance(module, nn.Parameter) or type(module).__name__ == "_OutputOp":
                return None
            continue
        assert name is not None
        reads = _reads(graph, item.dep)
        # The library may take one channel for another, as where the image itself is put beside features.
        if own is None or not _same(live.channels.get(name), reads, index, own[1][roots]):
            return None
        met += len(index)
        if isinstance(module, MIXING):
            if not reads:
                seen.add(name)
            needs = (live.read if reads else live.needed).get(name)
            if needs is None or len(set(item.idxs)) != len(index):
                return None
            dead[roots[needs[index]]] = False
    return dead if own is not None and met == int(times[torch.unique(own[1])].sum()) else None


def _same(channels: tuple[Tensor, Tensor] | None, reads: bool, index: Tensor, expected: Tensor) -> bool:
    """Whether a layer's inputs or outputs of these numbers are the channels that they are held for."""
    if channels is None:
        return False
    mine = channels[0] if reads else channels[1]
    return int(index.max()) < len(mine) and torch.equal(mine[index], expected)


def _times(live: Liveness) -> Tensor:
    """How often layers make or read each channel, by its number; batch-norm does both at once."""
    made = [out for _, out in live.channels.values()]
    read = [read for name, (read, _) in live.channels.items() if name in live.read]
    return torch.bincount(torch.cat([*made, *read]))


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
