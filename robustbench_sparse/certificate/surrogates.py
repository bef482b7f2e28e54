"""Networks made from a network so that gradients flow, and what in it keeps them from flowing.

Every surrogate maps images (B, C, H, W) to logits (B, K), is in eval mode, and is attacked in the network's place;
whether a candidate fools is judged on the network itself. Where the network can be copied, a surrogate is a copy.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attacks.base import GeneratorNoise, RandomModule, SampleRandom, noise_from
from attacks.losses import margin

PROBED = 8  # images that a network's inside is looked at with
ROUNDS = 32  # gaps in the gradient that are closed one after another at most
SHARE = 0.25  # of the probed images: so many zero gradients are no accident
AGREES = 0.9  # cosine of the slopes that a gradient claims and those that the values have
SOURCE_FLOOR = 1e-300  # keeps a logarithm finite in float64


def copied(model: nn.Module) -> nn.Module | None:
    """A copy of a network, or None where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever a foreign network's parts raise
        return None


def _noise(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The same noise for every look at a random network, and none from torch's global generator."""
    return noise_from(network, GeneratorNoise(torch.Generator().manual_seed(0)))


class _Surrogate(nn.Module):
    """Holds a network whose modes stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = False  # not eval(), which would reach into the network


class Scaled(_Surrogate):
    """Logits times a factor > 0, in the images' type; (B, C, H, W) -> (B, K).

    Attacks want logits of their images' type: a network in float64 is attacked by way of this.
    """

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__(network)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits times the factor."""
        out: Tensor = self.network(x)
        return (out * self.factor).to(x.dtype)


class InFloat64(_Surrogate):
    """A network in float64 that takes images of any type; (B, C, H, W) -> (B, K) in float64."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float64."""
        out: Tensor = self.network(x.double())
        return out.double()


def in_float64(model: nn.Module, x: Tensor) -> nn.Module | None:
    """A copy in float64; None where there is no copy, or no forward pass in float64.

    Args:
        model: the network.
        x: images (B, C, H, W) to try it on.
    """
    twin = copied(model)
    if twin is None:
        return None
    try:
        out = InFloat64(twin.double())
        with torch.no_grad(), _noise(out):
            logits = out(x[:2])
    except Exception:  # such as constants that stay in float32
        return None
    return out if bool(logits.isfinite().all()) else None


class Inverted(_Surrogate):
    """Undoes a sigmoid (``logit``), a softmax (``log``) or a tanh (``atanh``) last; (B, C, H, W) -> (B, K)."""

    def __init__(self, network: nn.Module, kind: Literal["logit", "log", "atanh"]) -> None:
        super().__init__(network)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float64, as far as rounding left them."""
        out: Tensor = self.network(x).double()
        if self.kind == "log":
            return torch.log(out.clamp_min(SOURCE_FLOOR))
        p = out if self.kind == "logit" else (out + 1) / 2
        # 1 - p loses what lies below float64's last digit; there the gradient ends.
        return torch.log(p.clamp_min(SOURCE_FLOOR)) - torch.log((1 - p).clamp_min(2.0**-53))


# Looking inside -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The first tensor that goes into, or the one that comes out of, a submodule's ``number``-th call."""

    name: str
    number: int
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Bridge:
    """In the backward pass the gradient at ``target`` goes to ``source`` (the image if None), and nowhere else."""

    source: Place | None
    target: Place


_Before = Callable[[str, int, nn.Module, Tensor], Tensor]
_After = Callable[[str, int, nn.Module, Tensor, Tensor], Tensor]


@contextlib.contextmanager
def _hooked(network: nn.Module, before: _Before, after: _After) -> Iterator[None]:
    """Let two functions see, and replace, what goes into and comes out of every submodule's calls."""
    handles: list[RemovableHandle] = []
    numbers: dict[str, int] = {}
    running: dict[str, list[tuple[int, Tensor]]] = {}

    def enter(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            number = numbers[name] = numbers.get(name, -1) + 1
            if not (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
                running.setdefault(name, []).append((number, torch.empty(0)))
                return None
            given = before(name, number, module, args[0])
            running.setdefault(name, []).append((number, given))
            return None if given is args[0] else (given, *args[1:])

        return hook

    def leave(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            number, given = running[name].pop()
            if not (isinstance(out, Tensor) and out.is_floating_point()):
                return None
            taken = after(name, number, module, given, out)
            return None if taken is out else taken

        return hook

    try:
        for name, module in network.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _StraightThrough(torch.autograd.Function):
    """The value; its gradient goes to another tensor of as many numbers."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = source.shape, source.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0].reshape(ctx.shape).to(ctx.dtype)


class Rewired(_Surrogate):
    """A network with the same values and another backward pass; (B, C, H, W) -> (B, K).

    Args:
        network: the network.
        bridges: where gradients take another way.
        skipped: a call whose output is replaced by its input, in the forward pass as well.
        detached: the image comes in without its gradient, for networks that raise where there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        bridges: Sequence[Bridge] = (),
        *,
        skipped: Place | None = None,
        detached: bool = False,
    ) -> None:
        super().__init__(network)
        self.bridges, self.skipped, self.detached = tuple(bridges), skipped, detached

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        wiring = _Wiring(self.bridges, x)

        def after(name: str, number: int, module: nn.Module, given: Tensor, out: Tensor) -> Tensor:
            place = Place(name, number, "output")
            return given if place == self.skipped else wiring.passed(place, out)

        def before(name: str, number: int, module: nn.Module, given: Tensor) -> Tensor:
            return wiring.passed(Place(name, number, "input"), given)

        with _hooked(self.network, before, after):
            out: Tensor = self.network(x.detach() if self.detached else x)
        return out


class _Wiring:
    """Applies bridges during one forward pass."""

    def __init__(self, bridges: Sequence[Bridge], x: Tensor) -> None:
        self.sources = {b.target: b.source for b in bridges}
        self.needed = {b.source for b in bridges}
        self.seen: dict[Place | None, Tensor] = {None: x}
        self.on = torch.is_grad_enabled()

    def passed(self, place: Place, value: Tensor) -> Tensor:
        """What goes on from a place."""
        if place in self.sources and self.on:
            source = self.seen.get(self.sources[place])
            if source is not None and source.numel() == value.numel():
                with torch.enable_grad():  # the network may have switched gradients off here
                    value = _StraightThrough.apply(value.detach(), source)
        if place in self.needed:
            self.seen[place] = value
        return value


@dataclass(frozen=True)
class _Call:
    """One call of a submodule: the tensor it got, what it made of it, and what went on from there."""

    name: str
    number: int
    module: nn.Module
    given: Tensor
    out: Tensor
    taken: Tensor
    order: int  # of its start among all starts

    @property
    def plain(self) -> bool:
        """Whether it has no parameters and keeps the shape."""
        return self.given.shape == self.out.shape and not any(True for _ in self.module.parameters())

    def place(self, side: Literal["input", "output"]) -> Place:
        """Where it is."""
        return Place(self.name, self.number, side)


def _calls(network: nn.Module, x: Tensor, bridges: Sequence[Bridge] = (), grad: bool = False) -> _Record:
    """Send images through a network and keep what its submodules got and gave, in order of their starts.

    With ``grad`` every tensor asks for a gradient, those that the network has cut off, too.
    """
    calls: list[_Call] = []
    starts: dict[tuple[str, int], int] = {}
    point = x.detach().requires_grad_(grad)

    def asking(t: Tensor) -> Tensor:
        if not grad or t.requires_grad:
            return t
        with torch.enable_grad():
            return t.detach().requires_grad_(True).clone()  # a clone may be changed in place, a leaf may not

    def before(name: str, number: int, module: nn.Module, given: Tensor) -> Tensor:
        starts[name, number] = len(starts)
        return asking(wiring.passed(Place(name, number, "input"), given))

    def after(name: str, number: int, module: nn.Module, given: Tensor, out: Tensor) -> Tensor:
        taken = asking(wiring.passed(Place(name, number, "output"), out))
        if len(given):
            kept = (given, out) if grad else (given.clone(), out.clone())
            calls.append(_Call(name, number, module, *kept, taken, starts[name, number]))
        return taken

    with torch.set_grad_enabled(grad):
        wiring = _Wiring(bridges, point)
        with _hooked(network, before, after), _noise(network):
            logits: Tensor = network(point)
    return _Record(point, logits, sorted(calls, key=lambda c: c.order))


@dataclass(frozen=True)
class _Record:
    """A pass through a network: the image, the logits, the calls in order."""

    point: Tensor
    logits: Tensor
    calls: list[_Call]


def _nonzero(grad: Tensor | None, count: int) -> Tensor:
    """Which images (count,) have a gradient that is not zero, bool."""
    if grad is None:
        return torch.zeros(count, dtype=torch.bool)
    if len(grad) != count:  # such as patches of an image
        return torch.full((count,), bool((grad != 0).any()))
    return (grad.flatten(1) != 0).any(1).cpu()


def _varies(out: Tensor) -> bool:
    """Whether a tensor differs between images: a layer of zero weights does not, and has no gradient to lose."""
    return len(out) > 1 and bool((out.detach() != out.detach()[:1]).any())


# What keeps gradients from flowing ----------------------------------------------------------------------


def _missing(network: nn.Module, x: Tensor, first: Sequence[Bridge] = ()) -> tuple[list[Bridge], bool]:
    """Bridges over all that kills the gradient of the margin, after some that are there already.

    Returns:
        All bridges, and whether the image gets a gradient in the end.
    """
    found = list(first)
    for _ in range(ROUNDS):
        record = _calls(network, x, found, grad=True)
        if not record.logits.requires_grad:
            return found, False
        loss = margin(record.logits, record.logits.detach().argmax(1)).sum()
        tensors = [record.point, *(t for c in record.calls for t in (c.given, c.taken))]
        grads = torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)
        arrives = float(_nonzero(grads[0], len(x)).float().mean())
        into, out_of = list(grads[1::2]), list(grads[2::2])
        bridged = {b.target for b in found}
        new = _killing(record.calls, out_of, bridged, len(x))
        if not new and arrives <= 1 - SHARE:
            new = _entry(record, into, out_of, bridged)
        if not new:
            return found, arrives > 0
        found += new
    return found, False


def _killing(
    calls: list[_Call], out_of: Sequence[Tensor | None], bridged: set[Place], count: int
) -> list[Bridge]:
    """Calls of parts without parameters that get a gradient and give none."""
    guilty: list[_Call] = []
    for call, grad in zip(calls, out_of, strict=True):
        if not call.plain or grad is None or call.place("output") in bridged:
            continue
        if call.taken is call.given or not _varies(call.out):
            continue
        gets = _nonzero(grad, count)
        gives = None
        if call.out.requires_grad:
            (gives,) = torch.autograd.grad(call.out, call.given, grad, allow_unused=True, retain_graph=True)
        lost = gets & ~_nonzero(gives, count)
        if bool(gets.any()) and float(lost.sum()) >= SHARE * float(gets.sum()):
            guilty.append(call)
    names = {c.name for c in guilty}
    inner = [c for c in guilty if not any(n.startswith(c.name + ".") for n in names)]
    return [Bridge(c.place("input"), c.place("output")) for c in inner]


def _entry(
    record: _Record, into: Sequence[Tensor | None], out_of: Sequence[Tensor | None], bridged: set[Place]
) -> list[Bridge]:
    """A bridge to the first call whose input gets a gradient though the image gets none: the code before it kills."""
    count = len(record.point)
    for i, call in enumerate(record.calls):
        gets = float(_nonzero(into[i], count).float().mean())
        if gets <= 1 - SHARE or call.place("input") in bridged or not _varies(call.given):
            continue
        if call.given.shape == record.point.shape:
            return [Bridge(None, call.place("input"))]
        for j in range(i - 1, -1, -1):
            earlier = record.calls[j]
            silent = float(_nonzero(out_of[j], count).float().mean()) < gets
            if earlier.taken.shape == call.given.shape and earlier.taken.grad_fn is not None and silent:
                return [Bridge(earlier.place("output"), call.place("input"))]
        if call.given.numel() == record.point.numel():
            return [Bridge(None, call.place("input"))]
    return []


def _first_layer(network: nn.Module, x: Tensor) -> list[Bridge]:
    """A bridge from the image to the first part with parameters that takes a tensor of the image's size."""
    with torch.no_grad():
        record = _calls(network, x)
    for call in record.calls:
        if call.given.numel() == x.numel() and any(True for _ in call.module.parameters()):
            return [Bridge(None, call.place("input"))]
    return []


def killers(model: nn.Module, x: Tensor) -> list[str]:
    """What kills the gradient of the margin on its way to the image; empty where nothing does.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of submodules; ``before NAME`` is code that no submodule holds, ahead of the named one.
    """
    network, x = copied(model) or model, x[:PROBED]
    try:
        found, _ = _missing(network, x)
    except Exception:  # no gradient at all, such as a detour over NumPy
        found = _first_layer(network, x)
    return [b.target.name if b.target.side == "output" else f"before {b.target.name}" for b in found]


def liars(model: nn.Module, x: Tensor) -> list[str]:
    """Parts without parameters whose gradient does not fit their values, and is not zero either.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of submodules, without repetition.
    """
    with torch.no_grad():
        record = _calls(copied(model) or model, x[:PROBED])
    return list(dict.fromkeys(c.name for c in record.calls if c.plain and _lies(c)))


def bpda(model: nn.Module, x: Tensor, *, wrong: bool = False, also: Sequence[str] = ()) -> nn.Module | None:
    """The same values with a backward pass that takes guilty parts for the identity.

    Backward Pass Differentiable Approximation (Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420,
    section 4.1).

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.
        wrong: the gradient is known to be wrong: parts whose own gradient does not fit their values are guilty, too,
            or, where there are none, all that lies before the first part with parameters.
        also: names of submodules that are to be taken for the identity as well, such as ``suspicious`` ones.

    Returns:
        The surrogate; None where nothing is guilty, or where no gradient would reach the image still.
    """
    network, x = copied(model) or model, x[:PROBED]
    extra: list[Bridge] = []
    if also or wrong:
        with torch.no_grad():
            record = _calls(network, x)
        chosen = [c for c in record.calls if c.plain and (c.name in also or (wrong and _lies(c)))]
        extra = [Bridge(c.place("input"), c.place("output")) for c in chosen]
    if wrong and not extra:
        extra = _first_layer(network, x)
    try:
        bridges, arrives = _missing(network, x, extra)
        detached = False
    except Exception:  # no gradient at all, such as a detour over NumPy
        bridges, arrives, detached = _first_layer(network, x), True, True
    return Rewired(network, bridges, detached=detached) if bridges and arrives else None


# Gradients that are there, and wrong --------------------------------------------------------------------


def agreement(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: Callable[[], Tensor],
    random: Callable[[], SampleRandom],
    *,
    count: int = 12,
    steps: Sequence[float] = (1e-4, 4 / 255),
) -> float | None:
    """How well the margin's gradient foretells its central differences along random directions.

    In float64 where the network allows it. A step crosses kinks and stairs that are smaller than itself, so the
    better of two steps counts.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), drawn in from 0 and 1 so that both sides of a step lie in the box.
        y: labels (B,).
        directions: makes one random direction per image, (B, C, H, W), of entries about 1.
        random: makes the noise of one pass, the same each time.
        count: directions per image.
        steps: lengths of the differences, in pixel units.

    Returns:
        The median over the images of the cosine between the ``count`` slopes that the gradient claims and those that
        the values have, in [-1, 1]; None where either vanishes, or where equal images get unequal logits.
    """
    network = in_float64(model, x) or model
    along = [directions() for _ in range(count)]

    def values(point: Tensor) -> Tensor:
        with noise_from(network, random()):
            return margin(network(point), y).double()

    best: float | None = None
    for step in steps:
        # Small steps drown in float32's rounding.
        step = step if isinstance(network, InFloat64) else max(step, 2 / 255)
        point = x.double() if isinstance(network, InFloat64) else x
        point = point.clamp(2 * step, 1 - 2 * step).detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(values(point).sum(), point)
        at = point.detach()
        claimed, real = [], []
        with torch.no_grad():
            if not bool(torch.isclose(values(at), values(at), rtol=1e-6, atol=1e-12).all()):
                return None
            for d in along:
                d = d.to(at)
                claimed.append((grad * d).flatten(1).sum(1).double())
                real.append((values(at + step * d) - values(at - step * d)) / (2 * step))
        cosine = _cosine(torch.stack(claimed, 1), torch.stack(real, 1))
        cosine = cosine[cosine.isfinite()]
        if len(cosine) * 2 >= len(x):
            now = cosine.median().item()
            best = now if best is None else max(best, now)
        if best is not None and best > AGREES:
            break
    return best


def disagrees(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: Callable[[], Tensor],
    random: Callable[[], SampleRandom],
) -> bool:
    """Whether the gradient is there and wrong: ``agreement`` of at most 0.9."""
    found = agreement(model, x, y, directions, random)
    return found is not None and found <= AGREES


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the rows of two matrices (B, N), (B,); nan where a row is zero."""
    length = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(length > 0, (a * b).sum(1) / length, math.nan)


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _inside(call: _Call) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
    """A call's part as a function and what it got, in float64 if it can; None for one that is random."""
    if any(isinstance(m, RandomModule) for m in call.module.modules()):
        return None
    for given in (call.given.detach().double(), call.given.detach()):
        try:
            with torch.no_grad():
                first, second = call.module(given.clone()), call.module(given.clone())
        except Exception:  # a part that insists on its type
            continue
        if isinstance(first, Tensor) and first.shape == given.shape and torch.equal(first, second):
            return lambda t: call.module(t.clone()), given
    return None


def _lies(call: _Call) -> bool:
    """Whether a part's gradient does not fit its values."""
    inside = _inside(call)
    if inside is None or not _varies(call.out):
        return False
    part, given = inside
    scale = float(given.std()) or 1.0
    step = scale * (1e-5 if given.dtype == torch.float64 else 1e-2)
    claimed, real = [], []
    for i in range(8):
        d, g = _normal(given, 2 * i), _normal(given, 2 * i + 1)
        at = given.clone().requires_grad_(True)
        with torch.enable_grad():
            out = part(at)
            grad = None
            if out.requires_grad:
                (grad,) = torch.autograd.grad(out, at, g, allow_unused=True)
        with torch.no_grad():
            real.append(
                (g * (part(given + step * d) - part(given - step * d))).flatten(1).sum(1) / (2 * step)
            )
        claimed.append(torch.zeros_like(real[-1]) if grad is None else (grad * d).flatten(1).sum(1))
    a, b = torch.stack(claimed).flatten(), torch.stack(real).flatten()
    length = float(a.norm() * b.norm())
    return length > 0 and float((a * b).sum()) / length <= AGREES


# Parts whose function jumps -----------------------------------------------------------------------------


def suspicious(model: nn.Module, x: Tensor) -> list[str]:
    """Parts without parameters whose function jumps, or that keep some units at the expense of others.

    Found by trying, not by name: each part is asked again on what it got. Random parts are left out.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), of which the first few are used.

    Returns:
        Names of the innermost such submodules, without repetition.
    """
    network = copied(model) or model
    with torch.no_grad():
        calls = [c for c in _calls(network, x[:PROBED]).calls if c.plain and _varies(c.out)]
        names: list[str] = []
        for call in calls:
            inside = _inside(call)
            if inside is not None and call.name not in names and (_selects(*inside) or _jumps(*inside)):
                names.append(call.name)
    return [n for n in names if not any(other.startswith(n + ".") for other in names)]


def _selects(part: Callable[[Tensor], Tensor], given: Tensor) -> bool:
    """Whether units go out as they came or as zero, and which depends on the other units."""
    out = part(given)
    if not bool(((out == given) | (out == 0)).all()) or bool((out == given).all()):
        return False
    moved = _normal(given, 1) > 0
    other = torch.where(moved, given + 2 * given.std() * _normal(given, 2), given)
    return bool((part(other) != out)[~moved].any())


def _jumps(part: Callable[[Tensor], Tensor], given: Tensor) -> bool:
    """Whether a value changes by much over an interval of next to no length, for 1 % of the units that change.

    The interval is halved again and again, each unit keeping the half of the larger change. A continuous
    function's change shrinks with it; a jump stays.
    """
    wide = given.dtype == torch.float64
    halvings, keeps = (26, 1e-4) if wide else (14, 1e-2)
    low = given
    high = given + given.std() * (0.5 + _normal(given, 3).abs())
    first = (part(high) - part(low)).abs()
    for _ in range(halvings):
        middle = (low + high) / 2
        a, b, c = part(low), part(middle), part(high)
        left = (b - a).abs() >= (c - b).abs()
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
    last = (part(high) - part(low)).abs()
    changes = first > 0
    jumped = changes & (last > keeps * first) & (last > 0)
    return bool(changes.any()) and float(jumped.sum()) >= 0.01 * float(changes.sum())


# The last activation ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Last:
    """A network's last elementwise part or softmax.

    Attributes:
        name: of its submodule; empty where it is code that no submodule holds.
        bounded: its values stay in one range however large what it gets.
        before: the network without it: the same verdicts, up to ties of a saturated output.
    """

    name: str
    bounded: bool
    before: nn.Module


def last_activation(model: nn.Module, x: Tensor) -> Last | None:
    """What a network's last computation is, where it can be taken away; None where there is no such part.

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W), on which the verdicts without it are compared.
    """
    network = copied(model) or model
    with torch.no_grad():
        record = _calls(network, x)
    out = record.logits
    for call in reversed(record.calls):
        leaf = not any(True for _ in call.module.children())
        if not (leaf and call.plain and call.out.shape == out.shape and torch.equal(call.out, out)):
            continue
        if torch.equal(call.given, out):
            continue  # such as nn.Identity
        if not _same_verdicts(call.given, out):
            return None
        with torch.no_grad():
            far = call.module(1e6 * call.given).abs()
        bounded = bool(far.isfinite().all()) and far.max().item() <= max(1.0, 1.01 * out.abs().max().item())
        return Last(call.name, bounded, Rewired(network, skipped=call.place("output")))
    inverse = _inverse(model, x, out)
    return None if inverse is None else Last("", True, inverse)


def _inverse(model: nn.Module, x: Tensor, out: Tensor) -> nn.Module | None:
    """Undo a sigmoid, softmax or tanh in the network's code; None where the outputs are not like theirs."""
    wide = in_float64(model, x) or model
    low, high = out.min().item(), out.max().item()
    kind: Literal["logit", "log", "atanh"]
    if low >= 0 and high <= 1:
        sums = bool(((out.sum(1) - 1).abs() <= 1e-5).all())
        kind = "log" if sums else "logit"
    elif low >= -1 and high <= 1 and out.abs().max().item() > 0.99:
        kind = "atanh"
    else:
        return None
    surrogate = Inverted(wide, kind)
    with torch.no_grad(), _noise(surrogate):
        logits = surrogate(x)
    return surrogate if bool(logits.isfinite().all()) and _same_verdicts(logits, out) else None


def _same_verdicts(before: Tensor, out: Tensor) -> bool:
    """Whether the largest logit is (one of) the largest outputs, for every image."""
    chosen = out.gather(1, before.argmax(1, keepdim=True).to(out.device)).squeeze(1)
    return bool((chosen >= out.amax(1) - 1e-6 * out.abs().amax(1)).all())


def without_last_activation(model: nn.Module, x: Tensor) -> nn.Module | None:
    """The network without its last activation or softmax; see ``last_activation``. None where it has none."""
    last = last_activation(model, x)
    return None if last is None else last.before
