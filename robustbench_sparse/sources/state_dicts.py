"""Weights as others save them: what stands around and before their names is undone, masks are folded, and it is said.

Training loops save a network within a dictionary of other things, ``DataParallel`` puts ``module.`` before every name,
``torch.compile`` ``_orig_mod.``, Lightning ``model.``; ``torch.nn.utils.prune`` keeps ``weight_orig`` and
``weight_mask`` in place of a weight. None of it belongs to the network that is judged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from robustbench_sparse.foundation.errors import UserError, cut
from robustbench_sparse.foundation.files import fill, read_state, tensors_of

Tensors = dict[str, Tensor]

# Keys that a network's weights stand under, those of an average over the training first: what is reported is its.
NESTS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net", "network",
    "module", "shadow", "weights", "params",
)  # fmt: skip
PREFIXES = ("module.", "model.", "_orig_mod.")
COMPILED = "_orig_mod."
# Left in a file by averaging, and by libraries that count operations.
BESIDE = ("n_averaged", "total_ops", "total_params")
ORIGINAL, MASK, COUNTER = "_orig", "_mask", "num_batches_tracked"
NORMALISING = ("mean", "std", "mu", "sigma")  # how layers name the numbers of a normalisation


def load(model: nn.Module, path: Path) -> list[str]:
    """Fill a network with the weights of a file, in place; what was undone for that, a sentence each.

    Pruning masks are folded: of the file's into its weights, and of the network's own, so that zeros are counted.

    Raises:
        UserError: no such file, one that could run code, or weights that do not fit; with the cure, as far as it shows.
    """
    state, notes = read(path)
    named, more = fitted(state, model.state_dict())
    put(model, named, path)
    return [*notes, *more, *fold(model)]


def put(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network with weights under its own names; UserError with the cure where they do not fit."""
    try:
        fill(model, state, path)
    except UserError as e:
        cure = cure_of(state, model.state_dict())
        raise UserError(f"{cut(str(e), 220)}; {cure}" if cure else e) from None


def read(path: Path) -> tuple[Tensors, list[str]]:
    """The weights in a file, taken out of what stands around them, and what was undone for that.

    Raises:
        UserError: see ``load``.
    """
    return taken(read_state(path), path)


def taken(state: Any, path: Path) -> tuple[Tensors, list[str]]:
    """As ``read``, of what ``read_state`` gave of a file at ``path``."""
    way: list[str] = []
    notes: list[str] = []
    while isinstance(state, dict) and not _is_tensors(state):
        known = [key for key in NESTS if isinstance(state.get(key), dict) and state[key]]
        if not known or len(way) > 3:
            keys = cut(", ".join(map(str, state)), 120) or "nothing"
            raise UserError(
                f"{path}: expected the weights of a network, and it holds {keys}; save them alone: "
                "torch.save(network.state_dict(), FILE)"
            )
        way.append(known[0])
        if len(known) > 1:
            notes.append(f"of {', '.join(known)} in the file the weights are those of {known[0]}")
        state = state[known[0]]
    tensors = tensors_of(state, path)
    beside = [name for name in tensors if name.rpartition(".")[2] in BESIDE]
    if way:
        notes.insert(0, f"taken from {' / '.join(way)} in the file")
    return {name: w for name, w in tensors.items() if name not in beside}, notes


def fitted(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Weights under a network's names, as far as these differ by prefixes and masks alone; and what was undone.

    Args:
        state: the file's.
        own: the network's ``state_dict``.
    """
    notes: list[str] = []
    named = dict(state)
    if any(COMPILED in name for name in named) and not any(COMPILED in name for name in own):
        named = {name.replace(COMPILED, ""): w for name, w in named.items()}
        notes.append(f"{COMPILED} taken out of the names")
    while (prefix := _known_prefix(named, own)) is not None:
        named = {name.removeprefix(prefix): w for name, w in named.items()}
        notes.append(f"{prefix} taken off the names")
    named, folded = _folded(named, own)
    named, moved = _moved(named, own)
    notes += [*moved, *folded]
    counters = [name for name in own if name not in named and name.rpartition(".")[2] == COUNTER]
    return {**named, **{name: own[name] for name in counters}}, notes


def sizes_of(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Classes and channels of a file's network, where it differs from another one in its last or first layer alone.

    Args:
        state: the file's weights, under the network's names; see ``fitted``.
        own: the network's ``state_dict``.

    Returns:
        Number of classes and of channels; None where they are the network's, or nothing can be told.
    """
    pairs = [(own[name].shape, w.shape) for name, w in state.items() if name in own]
    differ = [(a, b) for a, b in pairs if a != b and len(a) == len(b) > 0]
    classes = {(a[0], b[0]) for a, b in differ if a[1:] == b[1:]}
    channels = {(a[1], b[1]) for a, b in differ if len(a) > 1 and a[0] == b[0] and a[2:] == b[2:]}
    told = [next(iter(found))[1] if len(found) == 1 else None for found in (classes, channels)]
    return told[0], told[1]


def cure_of(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What to do about weights that do not fit a network, as far as names and shapes show it; else empty."""
    missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
    numbers = [n for n in unknown if n.rpartition(".")[2] in NORMALISING and state[n].numel() <= 4]
    if numbers:
        values = {n: ",".join(f"{v:.4g}" for v in state[n].flatten().tolist()) for n in numbers[:2]}
        shown = ", ".join(f"{n} = {v}" for n, v in values.items())
        return (
            f"the file has a normalisation of its own ({shown}): give the network a layer of that name, or leave these "
            "tensors out of the file and say --mean and --std"
        )
    classes, channels = sizes_of(state, own)
    if classes is not None:
        return (
            f"the file's network has {classes} classes: build it with as many, and --classes maps the data's"
        )
    if channels is not None:
        return f"the file's network takes images of {channels} channels: build it with as many"
    if missing and unknown:
        end = missing[0].rpartition(".")[2]
        like = next((n for n in unknown if n.rpartition(".")[2] == end), unknown[0])
        return f"the file has {like} where the network has {missing[0]}: rename the layers, or build the file's network"
    if missing:
        return "the file holds a part of the network: save the whole state_dict()"
    return "the network lacks layers that the file has: build the one that was saved" if unknown else ""


def fold(model: nn.Module) -> list[str]:
    """Make the pruning masks of a network part of its weights, in place; what was folded, in a sentence."""
    masked = masked_layers(model)
    for module, name in masked:
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    return [f"pruning masks folded into {len(masked)} weights"] if masked else []


def folded_copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A network without pruning masks: itself where it has none, else a copy in which they are folded."""
    masked = masked_layers(model)
    if not masked:
        return model, []
    # What a mask leaves of a weight is computed, and torch copies nothing that is; it is computed again when needed.
    kept = [(module, name, module.__dict__.pop(name)) for module, name in masked if name in module.__dict__]
    try:
        twin = copy.deepcopy(model)
    finally:
        for module, name, value in kept:
            module.__dict__[name] = value
    for (module, name), (source, _) in zip(masked_layers(twin), masked, strict=True):
        original, mask = getattr(source, name + ORIGINAL), getattr(source, name + MASK)
        module.__dict__[name] = (original * mask).detach()
    return twin, fold(twin)


def masked_layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules with a pruning mask of ``torch.nn.utils.prune``, and the name of the tensor that it masks."""
    found = []
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                found.append((module, hook._tensor_name))
    return found


def _is_tensors(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(isinstance(w, Tensor) for w in state.values())


def _known_prefix(state: Iterable[str], own: Iterable[str]) -> str | None:
    """A known prefix of all of a file's names that the network's do not have."""
    names, theirs = list(state), list(own)
    for prefix in PREFIXES:
        if (
            names
            and all(n.startswith(prefix) for n in names)
            and not all(n.startswith(prefix) for n in theirs)
        ):
            return prefix
    return None


def _moved(state: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """The weights under the network's names where one prefix, whatever it is, makes the whole difference."""
    wanted = {n for n in own if n.rpartition(".")[2] != COUNTER}
    names = {n for n in state if n.rpartition(".")[2] != COUNTER}
    if names == wanted or len(names) != len(wanted) or not names:
        return state, []
    for longer, shorter, adds in ((names, wanted, False), (wanted, names, True)):
        one, other = min(longer, key=len), min(shorter, key=len)
        prefix = one[: len(one) - len(other)]
        if prefix.endswith(".") and longer == {prefix + n for n in shorter}:
            if adds:
                return {prefix + n: w for n, w in state.items()}, [f"{prefix} put before the names"]
            return {n.removeprefix(prefix): w for n, w in state.items()}, [f"{prefix} taken off the names"]
    return state, []


def _folded(state: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Weights with their masks multiplied in, where the network itself has no masks."""
    out, count = dict(state), 0
    for name in [n for n in state if n.endswith(MASK) and n not in own]:
        base = name.removesuffix(MASK)
        source = base + ORIGINAL if base + ORIGINAL in state else base
        weight, mask = state.get(source), state[name]
        if weight is None or weight.shape != mask.shape or not _multiplies(weight):
            continue
        del out[name], out[source]
        out[base] = torch.where(mask == 0, torch.zeros_like(weight), weight * mask.to(weight.dtype))
        count += 1
    return out, [f"pruning masks folded into {count} weights"] if count else []


def _multiplies(weight: Tensor) -> bool:
    """Whether torch can multiply such numbers; of the smallest formats it cannot."""
    return weight.is_floating_point() and weight.dtype.itemsize > 1
