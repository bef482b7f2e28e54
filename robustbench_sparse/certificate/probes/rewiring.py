"""Looking inside a network, and giving its backward pass another way.

Every surrogate maps images (B, C, H, W) to logits (B, K), is in eval mode, and is attacked in the network's place;
whether a candidate fools is judged on the network itself. Where the network can be copied, a surrogate is a copy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attacks.base import GeneratorNoise, noise_from

PROBED = 8  # images that a network's inside is looked at with


def copied(model: nn.Module) -> nn.Module | None:
    """A copy of a network, or None where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever a foreign network's parts raise
        return None


def same_noise(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The same noise for every look at a random network, and none from torch's global generator."""
    return noise_from(network, GeneratorNoise(torch.Generator().manual_seed(0)))


class Surrogate(nn.Module):
    """Holds a network whose modes stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = False  # not eval(), which would reach into the network


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


class Rewired(Surrogate):
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
class Call:
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


def calls_of(network: nn.Module, x: Tensor, bridges: Sequence[Bridge] = (), grad: bool = False) -> Record:
    """Send images through a network and keep what its submodules got and gave, in order of their starts.

    With ``grad`` every tensor asks for a gradient, those that the network has cut off, too.
    """
    calls: list[Call] = []
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
            calls.append(Call(name, number, module, *kept, taken, starts[name, number]))
        return taken

    with torch.set_grad_enabled(grad):
        wiring = _Wiring(bridges, point)
        with _hooked(network, before, after), same_noise(network):
            logits: Tensor = network(point.clone())
    return Record(point, logits, sorted(calls, key=lambda c: c.order))


@dataclass(frozen=True)
class Record:
    """A pass through a network: the image, the logits, the calls in order."""

    point: Tensor
    logits: Tensor
    calls: list[Call]


def varies(out: Tensor) -> bool:
    """Whether a tensor differs between images: a layer of zero weights does not, and has no gradient to lose."""
    return len(out) > 1 and bool((out.detach() != out.detach()[:1]).any())
