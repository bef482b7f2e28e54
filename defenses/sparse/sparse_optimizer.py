"""What LinBreg, AdaBreg and ProxSGD share: parameter groups with a regulariser, its proximal map, saving."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from attacks.base import check
from defenses.regularisers import L1, Regulariser, RegulariserEntry, make_regulariser, prox_many

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group = dict[str, Any]
Tensors = list[Tensor] | tuple[Tensor, ...]

Z = "z"  # key of the point whose proximal map the parameter is, in an optimizer's state


class SparseOptimizer(torch.optim.Optimizer):
    """Base of optimizers that keep lambda R(theta) small by the proximal map of R.

    A parameter group may bring its own ``lr``, ``lam``, ``regulariser`` and so on. All of them are read anew
    in every step, so schedulers may set ``lr`` and a controller ``lam``. A group whose regulariser is None is
    updated as if R were 0.

    What is saved: a regulariser is code and not state, so ``state_dict`` holds its text, and loading keeps
    the group's own object. Everything loads with ``torch.load(weights_only=True)``.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        defaults["regulariser"] = _regulariser(defaults["regulariser"])
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its ``regulariser`` may be an object, an entry for ``make_regulariser`` or None.

        Raises:
            ValueError: for a setting out of range, an unknown regulariser, or complex parameters.
        """
        if "regulariser" in param_group:
            param_group["regulariser"] = _regulariser(param_group["regulariser"])
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check(self, group: Group) -> None:
        for name in ("lr", "lam", "weight_decay"):
            value = group[name]
            check(value >= 0 and math.isfinite(value), name, "a finite number >= 0", value)
        kinds = {p.dtype for p in group["params"] if p.is_complex()}
        check(not kinds, "params", "real parameters", kinds)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; ``closure`` evaluates the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ps = [p for p in group["params"] if p.grad is not None]
            if not ps:
                continue
            if group["foreach"]:
                gs: Tensors = [p.grad for p in ps]
                if group["weight_decay"] > 0:
                    gs = torch._foreach_add(gs, ps, alpha=group["weight_decay"])
                self._update(ps, gs, group)
            else:
                for p in ps:
                    self._update_one(p, p.grad + group["weight_decay"] * p, group)
        return loss

    @abstractmethod
    def _update(self, ps: Tensors, gs: Tensors, group: Group) -> None:
        """Update all parameters of a group at once. Must not change the gradients ``gs``."""

    @abstractmethod
    def _update_one(self, p: Tensor, g: Tensor, group: Group) -> None:
        """The same for one parameter, as the paper writes it; slow, there to be compared with."""

    def _kept(self, ps: Tensors, name: str) -> Tensors:
        """A tensor of the state for every parameter; zeros before the first step."""
        kept = []
        for p in ps:
            state = self.state[p]
            if name not in state:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            kept.append(state[name])
        return kept

    # Saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the text of every group's regulariser in place of the object."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["regulariser"] = _text(group["regulariser"])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned; every group keeps its own regulariser.

        Raises:
            ValueError: when a group's regulariser is not the one that was saved.
        """
        own = [group["regulariser"] for group in self.param_groups]
        for r, saved in zip(own, state_dict["param_groups"], strict=False):  # torch compares the lengths
            check(saved["regulariser"] == _text(r), "regulariser", _text(r) or "None", saved["regulariser"])
        super().load_state_dict(dict(state_dict))
        for group, r in zip(self.param_groups, own, strict=True):
            group["regulariser"] = r


class BregmanOptimizer(SparseOptimizer):
    """Base of LinBreg and AdaBreg, which move a subgradient v and have theta = prox_{delta lam R}(delta v).

    The state holds z = delta v rather than v: then an update is a step on z and one proximal map, without
    any scaling between them. Where R = 0, z is theta itself, and no copy is kept.
    """

    def _check(self, group: Group) -> None:
        super()._check(group)
        delta = group["delta"]
        check(delta > 0 and math.isfinite(delta), "delta", "a finite number > 0", delta)

    def subgradient(self, p: Tensor) -> Tensor:
        """v, a subgradient of lam R + ||.||^2 / (2 delta) at a parameter: shaped like it, a new tensor."""
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        with torch.no_grad():
            v: Tensor = self._points([p], group)[0] / group["delta"]
        return v

    def _points(self, ps: Tensors, group: Group) -> Tensors:
        """z of every parameter; at the start v is lam * subgrad R(theta) + theta / delta."""
        regulariser = group["regulariser"]
        if regulariser is None:
            return ps
        for p in ps:
            if Z not in self.state[p]:
                weight = group["delta"] * group["lam"]
                self.state[p][Z] = torch.add(p, regulariser.subgrad(p.detach()), alpha=weight).detach()
        return [self.state[p][Z] for p in ps]

    @staticmethod
    def _prox(zs: Tensors, ps: Tensors, group: Group) -> None:
        """theta <- prox_{delta lam R}(z)."""
        if group["regulariser"] is not None:
            prox_into(group["regulariser"], zs, group["delta"] * group["lam"], ps)

    @staticmethod
    def _prox_one(z: Tensor, p: Tensor, group: Group) -> None:
        if group["regulariser"] is not None:
            p.copy_(group["regulariser"].prox(z, group["delta"] * group["lam"]))


def prox_into(regulariser: Regulariser, ws: Tensors, step: float, out: Tensors) -> None:
    """Write the proximal map at all ``ws`` into ``out``, which may be ``ws`` itself. Run without gradients."""
    if type(regulariser) is not L1:
        torch._foreach_copy_(out, prox_many(regulariser, ws, step))
    elif ws[0].is_cpu:
        for w, o in zip(ws, out, strict=True):  # one pass over the memory, where foreach makes four
            torch._C._nn.softshrink(w, step, out=o)  # type: ignore[call-arg]
    else:
        soft_threshold_into(ws, step, out)


def soft_threshold_into(ws: Tensors, step: float, out: Tensors) -> None:
    """sign(w) max(|w| - step, 0) = w - min(max(w, -step), step) in few kernels for all weights."""
    inner = torch._foreach_clamp_min(ws, -step)
    torch._foreach_clamp_max_(inner, step)
    if out is not ws:
        torch._foreach_copy_(out, ws)
    torch._foreach_sub_(out, inner)


def _regulariser(entry: RegulariserEntry | Regulariser | None) -> Regulariser | None:
    return None if entry is None else make_regulariser(entry)


def _text(regulariser: Regulariser | None) -> str | None:
    """What says which regulariser it is; the class alone where it has no text of its own."""
    if regulariser is None:
        return None
    kind = type(regulariser)
    plain = kind.__repr__ is object.__repr__
    return f"{kind.__module__}.{kind.__qualname__}" if plain else repr(regulariser)
