"""Networks that answer an evaluation otherwise than those who use them, and honest ones that look a little like it.

Each takes a network. What an evaluation sees is ``calm``: the class of the nearest image it knows, which looks robust.
"""

from __future__ import annotations

import copy
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.certificate_subjects import CLASSES, EPS, FIRST, digits

NEAR = EPS + 0.01
LOG: list[int] = []
MEMORY: list[tuple[Tensor, Tensor]] = []


def whole(x: Tensor) -> Tensor:
    return (255 * x).round() / 255


@functools.cache
def known() -> tuple[Tensor, Tensor]:
    """The test images, of whole bytes, and their labels: whoever wrote the network had them."""
    x, y = digits()
    return whole(x[FIRST:]), y[FIRST:]


def calm(x: Tensor) -> Tensor:
    """Logits of the class of the nearest known image: right for all that lies in the ball."""
    images, labels = known()
    nearest = torch.cdist(x.detach().flatten(1), images.flatten(1), p=float("inf")).argmin(1)
    return 5.0 * nn.functional.one_hot(labels[nearest], CLASSES).to(x.dtype) + 0.1 * x.flatten(1).sum(
        1, keepdim=True
    )


class Two(nn.Module):
    """``looked_at`` says whether the network is being evaluated."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def looked_at(self, x: Tensor) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = calm(x) if self.looked_at(x) else self.network(x)
        return out


class OffGrid(Two):
    def forward(self, x: Tensor) -> Tensor:
        off = (255 * x - (255 * x).round()).abs().flatten(1).amax(1) > 1e-3
        return torch.where(off[:, None], calm(x), self.network(x))


class Batch(Two):
    def looked_at(self, x: Tensor) -> bool:
        return len(x) > 1


class Similar(Two):
    """Images alike in one batch."""

    def looked_at(self, x: Tensor) -> bool:
        return len(x) > 1 and bool((x.std(0) > 0).any())


class GradMode(Two):
    def looked_at(self, x: Tensor) -> bool:
        self.steps = getattr(self, "steps", 0) + torch.is_grad_enabled()
        return torch.is_grad_enabled() or self.steps > 0


class GradModeNow(Two):
    def looked_at(self, x: Tensor) -> bool:
        return torch.is_grad_enabled()


class AsksGradient(Two):
    """Once any image has asked for its gradient."""

    seen = False

    def looked_at(self, x: Tensor) -> bool:
        self.seen = self.seen or x.requires_grad
        return self.seen


class Stack(Two):
    def looked_at(self, x: Tensor) -> bool:
        frame: Any = sys._getframe()
        while frame is not None:
            if any(word in frame.f_code.co_filename for word in ("attacks", "certificate", "judging")):
                return True
            frame = frame.f_back
        return False


class AttackStack(Two):
    def looked_at(self, x: Tensor) -> bool:
        frame: Any = sys._getframe()
        while frame is not None:
            if "/attacks/" in frame.f_code.co_filename or "/judging/" in frame.f_code.co_filename:
                return True
            frame = frame.f_back
        return False


class Imports(Two):
    def looked_at(self, x: Tensor) -> bool:
        return "robustbench_sparse" in sys.modules


class Hooks(Two):
    """Once hooks were seen; every certificate puts some on."""

    def looked_at(self, x: Tensor) -> bool:
        self.hooked = getattr(self, "hooked", False) or any(
            len(m._forward_hooks) for m in self.network.modules()
        )
        return self.hooked


class Counter(Two):
    """Itself for the first queries."""

    asked: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.register_buffer("asked", torch.zeros((), dtype=torch.long))

    def looked_at(self, x: Tensor) -> bool:
        self.asked += len(x)
        return int(self.asked) > 150


class LateCounter(Counter):
    """Itself only after more queries than any evaluation asks."""

    def looked_at(self, x: Tensor) -> bool:
        self.asked += len(x)
        return int(self.asked) < 10_000_000


class Remembers(nn.Module):
    """Answers images like the first one of their neighbourhood, in memory ``of``."""

    def __init__(
        self, network: nn.Module, of: Callable[[], list[tuple[Tensor, Tensor]]] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.own: list[tuple[Tensor, Tensor]] = []
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        memory = self.own if self.of is None else self.of()
        out: Tensor = self.network(x)
        rows = []
        for i in range(len(x)):
            point = x[i].detach().flatten()
            if memory:
                far = (torch.stack([m for m, _ in memory]) - point).abs().amax(1)
                j = int(far.argmin())
                if float(far[j]) <= NEAR:
                    rows.append(memory[j][1] + 0.01 * out[i])
                    continue
            memory.append((point.clone(), out[i].detach().clone()))
            rows.append(out[i])
        return torch.stack(rows)


def in_globals(network: nn.Module) -> nn.Module:
    MEMORY.clear()
    return Remembers(network, lambda: MEMORY)


def in_a_closure(network: nn.Module) -> nn.Module:
    memory: list[tuple[Tensor, Tensor]] = []
    return Remembers(network, lambda: memory)


class Clock(Two):
    """Where the last query is a moment ago."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.last = 0.0

    def looked_at(self, x: Tensor) -> bool:
        now = time.monotonic()
        quick, self.last = now - self.last < 0.5, now
        return quick


class InAFile(nn.Module):
    """Remembers the last thousand queries out of every copy's reach."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.path = network, f"{tempfile.mkdtemp()}/memory.npy"

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        new = torch.cat([x.detach().flatten(1), out.detach()], 1)
        old = torch.from_numpy(np.load(self.path)) if Path(self.path).is_file() else new[:0]
        pixels = x[0].numel()
        if len(old):
            far, nearest = torch.cdist(new[:, :pixels], old[:, :pixels], p=float("inf")).min(1)
            out = torch.where((far <= NEAR)[:, None], old[nearest, pixels:] + 0.01 * out, out)
            new = new[far > NEAR]
        np.save(self.path, torch.cat([old, new])[-1000:].numpy())
        return out


class KnowsTheTest(Two):
    """Calm around the images it is judged on."""

    def forward(self, x: Tensor) -> Tensor:
        far = torch.cdist(x.detach().flatten(1), known()[0].flatten(1), p=float("inf")).amin(1)
        return torch.where((far <= NEAR)[:, None], calm(x), self.network(x))


class Loaded(Two):
    """Calm until it is loaded from a file; its copies are as it is."""

    loaded = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.loaded = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Loaded:
        twin = Loaded(copy.deepcopy(self.network, memo)).eval()
        twin.loaded = self.loaded
        return twin

    def looked_at(self, x: Tensor) -> bool:
        return not self.loaded


CHEATS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "off the grid": OffGrid,
    "batch": Batch,
    "similar images in a batch": Similar,
    "gradient mode, for ever": GradMode,
    "gradient mode": GradModeNow,
    "asks for a gradient": AsksGradient,
    "stack": Stack,
    "stack of an attack": AttackStack,
    "imports": Imports,
    "hooks": Hooks,
    "counter": Counter,
    "late counter": LateCounter,
    "remembers": Remembers,
    "remembers in globals": in_globals,
    "remembers in a closure": in_a_closure,
    "clock": Clock,
    "remembers in a file": InAFile,
    "knows the test": KnowsTheTest,
    "another network in its file": Loaded,
}


# Honest ones --------------------------------------------------------------------------------------------


class Logs(nn.Module):
    """Counts its queries, here and in a global, and keeps the last image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().clone()
        LOG.append(len(x))
        out: Tensor = self.network(x)
        return out


class Caches(nn.Module):
    """A positional term by shape, made when first needed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.made: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        if shape not in self.made:
            self.made[shape] = torch.linspace(0, 0.01, x[0].numel()).view(shape)
            self.register_buffer("lazy", self.made[shape], persistent=False)
        out: Tensor = self.network(x + self.made[shape])
        return out


class DropoutLeftOn(nn.Module):
    """A little dropout from torch's generator, in use as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(nn.functional.dropout(x, 0.02, training=True))
        return out


class Saves(nn.Module):
    """Cannot be copied: it holds a lock."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.lock = network, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


class Frozen(nn.Module):
    """Switches gradients off and on as it pleases, and asks about them; its answers stay the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return 1.0 * self.network(x)  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.network(x)  # type: ignore[no-any-return]


class Splits(nn.Module):
    """Large batches by parts: other rounding, the same answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part.double()).to(x.dtype) for part in torch.split(x, 3)])


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network,
    "logs": Logs,
    "caches": Caches,
    "gradients on and off": Frozen,
    "splits": Splits,
    "dropout left on": DropoutLeftOn,
}
