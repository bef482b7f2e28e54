"""Modules that sparsify, found by what they do and not by name, and other backward passes through them.

Such a module puts units to zero or to a common value and jumps where it starts to, as mean-centred sparsification
(Amini et al. 2024, https://arxiv.org/abs/2406.05927) and k-winners-take-all (Xiao et al. 2020,
https://arxiv.org/abs/1905.10510) do. Its gradient is right at every point and says nothing of the jumps beside it. A
ReLU makes zeros as well, but continuously: its gradient is taken as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attacks.base import RandomModule, SampleRandom, check, is_stochastic, logits_of, per_image

Slope = Literal["identity", "softened"]
PATTERNS = 2  # sign patterns over which a softened slope is averaged at once
HALVINGS, KEEPS = 18, 1e-2  # see ``jumped_units``: far enough above the rounding of float32
SHARE = 0.01  # of the units that change: so many jumps are no accident of rounding
# Known to be continuous, with the gradient of their values: trying them would only take time.
_CONTINUOUS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax, nn.Hardtanh, nn.Softshrink),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm),
)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, nn.Embedding)

Part = Callable[[Tensor], Tensor]


# What a part does ---------------------------------------------------------------------------------------


def jumped_units(part: Part, low: Tensor, high: Tensor, halvings: int, keeps: float) -> tuple[Tensor, Tensor]:
    """Which units of a part's output jump between two inputs, and which change at all; bool, shaped like the input.

    The interval is halved again and again, each unit keeping the half of the larger change. A continuous function's
    change shrinks with it; a jump stays.

    Args:
        part: keeps the shape.
        low, high: the ends of the interval.
        halvings: how often it is halved.
        keeps: share of the first change that has to be left for a jump.
    """
    first = (part(high) - part(low)).abs()
    for _ in range(halvings):
        middle = (low + high) / 2
        a, b, c = part(low), part(middle), part(high)
        left = (b - a).abs() >= (c - b).abs()
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
    last = (part(high) - part(low)).abs()
    changes = first > 0
    return changes & (last > keeps * first) & (last > 0), changes


def new_ties(given: Tensor, out: Tensor) -> Tensor:
    """Which images (B,) have zeros or repeated values in a part's output that its input has not; (B, ...) twice."""
    zeros = ((out == 0) & (given != 0)).flatten(1).any(1)
    before, after = (t.flatten(1).sort(1).values.diff(dim=1).eq(0).sum(1) for t in (given, out))
    return zeros | (after > before)


def _pattern(shape: torch.Size, number: int) -> Tensor:
    """The signs of a number, one for each unit and the same for every image; shaped (...)."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(2, shape, generator=generator, dtype=torch.int8) * 2 - 1


def _spread(given: Tensor) -> Tensor:
    """Standard deviation of each image's units, and above 0 where they are all equal; (B, 1, ...)."""
    units = given.flatten(1).double()
    floor = 1e-2 * units.abs().amax(1) + 1e-6
    return per_image(torch.maximum(units.std(1, correction=0), floor).to(given.dtype), given)


def _flat(part: Part, given: Tensor) -> Tensor:
    """Which images (B,) have units that stay where they are as their input moves a little: a value that is repeated."""
    near = given + 0.01 * _spread(given) * _pattern(given.shape[1:], 0).to(given)
    return ((part(near) == part(given)) & (near != given)).flatten(1).any(1)


def _jumps(part: Part, given: Tensor) -> Tensor:
    """Which images (B,) meet jumps, or units whose fate depends on the others', between two points near their own."""
    signs = _pattern(given.shape[1:], 0).to(given)
    high = given + _spread(given) * (1 + 0.5 * signs)
    jumped, changes = (t.flatten(1).sum(1) for t in jumped_units(part, given, high, HALVINGS, KEEPS))
    out, other = part(given), part(torch.where(signs > 0, given + 2 * _spread(given), given))
    chooses = ((out == given) | (out == 0)).flatten(1).all(1)
    chooses &= ((other != out) & (signs < 0)).flatten(1).any(1)
    return chooses | ((changes > 0) & (jumped >= SHARE * changes))


# Finding them -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _eagerly(model: nn.Module) -> Iterator[None]:
    """Compiled parts run as they are written: hooks set after compiling would not be asked."""
    if not any(hasattr(m, "_orig_mod") for m in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _may_sparsify(module: nn.Module) -> bool:
    """Whether a module is looked at: no layer of weights, no noise, and nothing known to be continuous."""
    if type(module) in _CONTINUOUS and "forward" not in vars(module):
        return False
    return not any(isinstance(m, (*_WEIGHTED, RandomModule)) for m in module.modules())


@torch.no_grad()
def sparsifiers(model: nn.Module, x: Tensor, random: SampleRandom, draws: int = 1) -> list[frozenset[str]]:
    """For each image the innermost modules that sparsify: their output has exact zeros or repeated values that their
    input has not, within the image or from one point to the next, and jumps.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W).
        random: their random streams.
        draws: passes that are looked at where the network is random; 1 otherwise.

    Returns:
        Names of submodules by image; what is said of one image does not depend on the others.
    """
    found: list[set[str]] = [set() for _ in range(len(x))]
    given: dict[str, list[Tensor]] = {}
    asking = False  # a module is tried: what its children do then is not looked at

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not asking:
                given.setdefault(name, []).append(args[0].clone() if _is_batch(args) else torch.empty(0))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            nonlocal asking
            if asking:
                return
            before = given[name].pop()
            if not (isinstance(out, Tensor) and out.shape == before.shape and len(out) == len(x)):
                return
            inside = [any(n.startswith(name + ".") for n in names) for names in found]
            wide = before.to(torch.promote_types(before.dtype, torch.float32))  # bfloat16 is all jumps
            asking = True
            try:
                part: Part = lambda t: module.forward(t.clone(), *args[1:], **kwargs)  # noqa: E731
                ties = (new_ties(before, out) | _flat(part, wide)) & ~torch.tensor(inside, device=out.device)
                if not bool(ties.any()):
                    return
                jumps = ties & _jumps(part, wide)
            finally:
                asking = False
            for i in jumps.nonzero().flatten().tolist():
                found[i].add(name)

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            if name and _may_sparsify(module):
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
        if handles:
            with _eagerly(model):
                for _ in range(draws if is_stochastic(model) else 1):
                    logits_of(model, x, random)
    finally:
        for handle in handles:
            handle.remove()
    return [frozenset(names) for names in found]


def _is_batch(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].ndim >= 2


def innermost(names: Iterable[str]) -> frozenset[str]:
    """Names of submodules without those that hold another one of them."""
    known = frozenset(names)
    return frozenset(n for n in known if not any(other.startswith(n + ".") for other in known))


# Another backward pass ----------------------------------------------------------------------------------


class _WithSlope(torch.autograd.Function):
    """A value; its gradient, times a slope for each unit, goes to another tensor of the same shape."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor, slope: Tensor | None) -> Tensor:
        ctx.slope, ctx.dtype = slope, source.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        grad = grads[0] if ctx.slope is None else grads[0] * ctx.slope
        return None, grad.to(ctx.dtype), None


def softened(part: Part, given: Tensor, width: float, first: int = 0) -> Tensor:
    """Secant slope of each unit, averaged over sign patterns s: s (f(a + h s) - f(a - h s)) / (2 h); (B, ...).

    Of a part that acts on every unit by itself it is the derivative of its mean over [a - h, a + h]; a jump inside
    counts with its height.

    Args:
        part: keeps the shape.
        given: its input a, (B, ...).
        width: h in units of the standard deviation of an image's own units.
        first: number of the first pattern.
    """
    h = width * _spread(given)
    total = torch.zeros_like(given)
    for number in range(first, first + PATTERNS):
        signs = _pattern(given.shape[1:], number).to(given)
        total += signs * (part(given + h * signs) - part(given - h * signs)) / (2 * h)
    return total / PATTERNS


class OtherBackward(nn.Module):
    """A network with the same values and another backward pass through some modules; (B, C, H, W) -> (B, K).

    From pass to pass the softened slopes take other sign patterns, so that steps one after another average over them;
    where the network is random, and its passes are averaged anyway, they stay the same.

    Args:
        model: the network; hooks stand on it during its passes only.
        names: the modules, each of which keeps its input's shape.
        slope: ``identity`` hands the gradient on as it comes (BPDA: Athalye et al. 2018, section 4.1); ``softened``
            takes it times the secant slope, see ``softened``.
        width: of the softened slope.
    """

    def __init__(self, model: nn.Module, names: frozenset[str], slope: Slope, width: float = 0.1) -> None:
        super().__init__()
        check(slope in get_args(Slope), "slope", " or ".join(get_args(Slope)), slope)
        self.model, self.names, self.slope, self.width = model, names, slope, width
        self.training = False  # not eval(), which would reach into the network
        self._pattern, self._turns = 0, not is_stochastic(model)

    def forward(self, x: Tensor) -> Tensor:
        """The network's own logits."""
        if not torch.is_grad_enabled():
            out: Tensor = self.model(x)
            return out
        handles: list[RemovableHandle] = []
        kept: list[Tensor] = []
        try:
            for name, module in self.model.named_modules():
                if name in self.names:
                    handles.append(module.register_forward_pre_hook(_keeper(kept)))
                    handles.append(module.register_forward_hook(self._replacer(kept), with_kwargs=True))
            self._pattern += PATTERNS if self._turns else 0
            with _eagerly(self.model):
                out = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        return out

    def _replacer(self, kept: list[Tensor]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            given, slope = kept.pop(), None
            if self.slope == "softened":
                with torch.no_grad():
                    part: Part = lambda t: module.forward(t, *args[1:], **kwargs)  # noqa: E731
                    slope = softened(part, given.detach(), self.width, self._pattern)
            with torch.enable_grad():  # the network may have switched gradients off here
                replaced: Tensor = _WithSlope.apply(out.detach(), given, slope)
            return replaced

        return hook


def _keeper(kept: list[Tensor]) -> Callable[..., tuple[Any, ...]]:
    """Keeps what a module gets, which it may write into, and gives it a copy."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(args[0])
        return args[0].clone(), *args[1:]

    return hook
