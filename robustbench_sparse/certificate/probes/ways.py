"""Ways of asking a network that must make no difference to its answer."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks import PGD, Square
from attacks.base import Attack, RandomModule, SampleRandom, Threat, answer
from robustbench_sparse.certificate.probes.user import Way, plain

DAY = 86_400.0
_CLOCKS = ("time", "perf_counter", "monotonic", "time_ns", "perf_counter_ns", "monotonic_ns", "process_time")


def with_gradients(network: nn.Module, x: Tensor) -> Tensor:
    """Gradients are recorded."""
    with torch.enable_grad():
        return answer(network, x)


def of_a_leaf(network: nn.Module, x: Tensor) -> Tensor:
    """The image asks for its gradient."""
    with torch.enable_grad():
        out: Tensor = network(x.clone().requires_grad_(True))
        return out.detach().clone()


def of_no_leaf(network: nn.Module, x: Tensor) -> Tensor:
    """The image is computed from one that asks for its gradient."""
    with torch.enable_grad():
        return answer(network, x.clone().requires_grad_(True))


def asking_in_vain(network: nn.Module, x: Tensor) -> Tensor:
    """The image asks for its gradient, and none is recorded."""
    with torch.no_grad():
        out: Tensor = network(x.clone().requires_grad_(True))
        return out.clone()


def in_inference_mode(network: nn.Module, x: Tensor) -> Tensor:
    """In torch's inference mode."""
    with torch.inference_mode():
        out: Tensor = network(x.clone())
    return out.clone()


def hooked(network: nn.Module, x: Tensor) -> Tensor:
    """With hooks on every module."""
    handles = [m.register_forward_hook(lambda *_: None) for m in network.modules()]
    handles += [m.register_forward_pre_hook(lambda *_: None) for m in network.modules()]
    try:
        return plain(network, x)
    finally:
        for handle in handles:
            handle.remove()


def frozen(network: nn.Module, x: Tensor) -> Tensor:
    """With parameters that ask for no gradient."""
    before = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        return plain(network, x)
    finally:
        for p, asks in before:
            p.requires_grad_(asks)


def strided(network: nn.Module, x: Tensor) -> Tensor:
    """A view into a larger tensor, in channels-last order."""
    wide = x.new_zeros(len(x) + 1, *x.shape[1:], 2)
    wide[1:, ..., 0] = x
    with torch.no_grad():
        out: Tensor = network(wide[1:, ..., 0].to(memory_format=torch.channels_last))
        return out.clone()


def out_of_a_file(network: nn.Module, x: Tensor) -> Tensor:
    """Saved as a whole, and loaded: who uses a network has it from a file."""
    loaded: nn.Module = pickle.loads(pickle.dumps(network))  # nothing but this process's own network
    for own, other in zip(network.modules(), loaded.modules(), strict=True):
        if isinstance(own, RandomModule) and isinstance(other, RandomModule):
            other.noise_source = own.noise_source  # one source for all layers, as they have it
    return plain(loaded.eval(), x)


def weights_loaded(network: nn.Module, x: Tensor) -> Tensor:
    """With its own weights loaded anew."""
    network.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
    return plain(network, x)


class _Recorder(nn.Module):
    """Answers an attack with the answer to the image that is looked at, whatever the attack asks."""

    network: nn.Module

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.__dict__["network"] = network  # not a submodule, which an attack would take for random itself
        self.x, self.first = x, list[Tensor]()
        self.training = False

    def forward(self, given: Tensor) -> Tensor:
        """Logits of the image, once for every one given."""
        point = self.x.clone()
        if given.requires_grad:
            point = (point + 0 * given[:1]).to(point)
        out: Tensor = self.network(point)
        self.first.append(out.detach().clone())
        return out.expand(len(given), -1)


def _by(attack: Attack) -> Way:
    def ask(network: nn.Module, x: Tensor) -> Tensor:
        recorder = _Recorder(network, x)
        streams = SampleRandom.spawn(torch.Generator().manual_seed(0), len(x))
        attack(recorder, x, torch.zeros(len(x), dtype=torch.long, device=x.device), Threat(eps=0.1), streams)
        return recorder.first[0]

    return ask


by_pgd = _by(PGD(steps=1, early_stop=False))
by_square = _by(Square(queries=4))


def later(spaces: Sequence[dict[str, Any]]) -> Way:
    """The same a day later by every clock of the module ``time``, each look at it a second after the one before.

    Args:
        spaces: globals of the network's functions, where a clock may have a name of its own.
    """

    def ask(network: nn.Module, x: Tensor) -> Tensor:
        with _late(spaces):
            return plain(network, x)

    return ask


@contextlib.contextmanager
def _late(spaces: Sequence[dict[str, Any]]) -> Iterator[None]:
    clocks = {name: getattr(time, name) for name in _CLOCKS}
    late = {id(clock): _slow(clock, 10**9 if name.endswith("_ns") else 1) for name, clock in clocks.items()}
    named = [(space, k, v) for space in spaces for k, v in list(space.items()) if id(v) in late]
    try:
        for name, clock in clocks.items():
            setattr(time, name, late[id(clock)])
        for space, k, v in named:
            space[k] = late[id(v)]
        yield
    finally:
        for name, clock in clocks.items():
            setattr(time, name, clock)
        for space, k, v in named:
            space[k] = v


def _slow(clock: Callable[[], Any], second: int) -> Callable[[], Any]:
    looks = 0

    def look() -> Any:
        nonlocal looks
        looks += 1
        return clock() + int(DAY + looks) * second

    return look


WAYS: dict[str, Way] = {
    "asked by the judge": plain,
    "gradients recorded": with_gradients,
    "the image asks for its gradient": of_a_leaf,
    "an image computed from one that asks for its gradient": of_no_leaf,
    "asking for a gradient that is not recorded": asking_in_vain,
    "inference mode": in_inference_mode,
    "hooks on its modules": hooked,
    "parameters that ask for no gradient": frozen,
    "another layout in memory": strided,
    "saved and loaded": out_of_a_file,
    "its weights loaded anew": weights_loaded,
    "asked by an attack with gradients": by_pgd,
    "asked by an attack without gradients": by_square,
}
