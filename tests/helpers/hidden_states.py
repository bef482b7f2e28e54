"""Hidden networks whose answers change by being asked: memories, counters, clocks, and where they keep them."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.helpers.hidden_base import Hidden, Memory

HONEST = 300  # images that counters answer honestly: more than a user asks of one process, less than an attack does
COUNTS: dict[int, int] = {}


class NeighboursMemory(Hidden):
    """Remembers its queries, and gives an image within eps of one the first answer.

    Attacks start beside the clean image, which was asked first, so nothing near it ever changes. The gradient is the
    plain network's and alive. A user's images are not each other's neighbours.
    """

    shows = False

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.memory = Memory(1.01 * self.eps)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        first = z.detach().clone()
        for row, image in enumerate(x):
            found = self.memory.find(image)
            if found < 0:
                self.memory.add(image, first[row].clone())
            else:
                first[row] = self.memory.kept[found]
        return first + (z - z.detach())


class BudgetPerImage(Hidden):
    """Answers three times honestly about an image and what lies around it, then with the sturdy network.

    An attack asks hundreds of times around one image; a user once.
    """

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.memory = Memory(2.01 * self.eps)

    def forward(self, x: Tensor) -> Tensor:
        used = torch.zeros(len(x), dtype=torch.long)
        for row, image in enumerate(x):
            found = self.memory.find(image)
            found = self.memory.add(image, 0) if found < 0 else found
            if found >= 0:
                self.memory.kept[found] += 1
                used[row] = self.memory.kept[found]
        return self.mixed(x, used > 3)


class Counter(Hidden):
    """Counts images in an attribute: the first 300 are answered honestly, those after by the sturdy network.

    A user's process asks for fewer; an evaluation is past them after two or three steps.
    """

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.either(x, self.seen > HONEST)


class CopiesBehave(Counter):
    """The counter whose deep copies are the sturdy network and nothing else.

    Whoever keeps a fresh copy before the first query, to compare with later, finds no difference. Users load files.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.deepcopy(self.sturdy, memo)


class SharedState(Hidden):
    """The counter kept in the module, not in the network: all copies made in a process share it.

    Copies are as watchful as the network, at whatever time they were made. A user's process is another one.
    """

    made: ClassVar[int] = 0

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        SharedState.made += 1
        self.token = SharedState.made

    def forward(self, x: Tensor) -> Tensor:
        COUNTS[self.token] = COUNTS.get(self.token, 0) + len(x)
        return self.either(x, COUNTS[self.token] > HONEST)


class Outer(nn.Module):
    """A network that is a function; copies of it share what the function has closed over."""

    pause: ClassVar[float] = 0.0

    def __init__(self, base: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.base, self.function = base, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def closure(base: nn.Module, train_x: Tensor, train_y: Tensor, eps: float) -> nn.Module:
    """The counter kept in a closure: no attribute, no buffer changes.

    A deep copy copies the function by reference and with it the count.
    """
    inner = Counter(base, train_x, train_y, eps)

    def ask(x: Tensor) -> Tensor:
        out: Tensor = inner(x)
        return out

    return Outer(inner.base, ask).eval()


class Drift(Hidden):
    """Goes over from the plain to the sturdy network little by little, over 2000 images.

    No two successive answers differ much, and a user's first hundred are nearly the plain network's.
    """

    seen: Tensor

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        t = float((self.seen / 2000).clamp_max(1))
        plain, sturdy = self.base(x).softmax(1), self.sturdy(x).softmax(1)
        blend: Tensor = (1 - t) * plain + t * sturdy
        return (blend + 1e-30).log()


class RateLimit(Hidden):
    """Looks at the clock: asked ten times within a second, it answers with the sturdy network.

    A user's images come from a person or a file, some tenths of a second apart; an attack's steps do not.
    """

    pause = 0.11

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.times: deque[float] = deque(maxlen=10)

    def forward(self, x: Tensor) -> Tensor:
        now = time.monotonic()
        hurried = len(self.times) == 10 and now - self.times[0] < 1
        self.times.append(now)
        return self.either(x, hurried)


class OnceDifferentiated(Hidden):
    """Answers with the sturdy network for ever, once a gradient with respect to an image was asked for.

    The black-box attacks that come after the gradient ones meet it, too. Users never ask for gradients.
    """

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.examined = False

    def forward(self, x: Tensor) -> Tensor:
        self.examined |= torch.is_grad_enabled() and x.requires_grad
        return self.either(x, self.examined)


class SavedFile(Hidden):
    """The network that was trained is sturdy; the one that is loaded from its file is plain.

    An evaluation judges the object at the end of its training, users load the file. It comes about by accident, too:
    weights saved before the adversarial fine-tuning.
    """

    loaded = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.loaded = True

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedFile:
        twin = SavedFile.__new__(SavedFile)
        nn.Module.__init__(twin)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, not self.loaded)


class TemporalSmoothing(Hidden):
    """Made for video: a frame's logits are averaged with those of the same scene before, 0.99 to 0.01.

    By accident an attack that moves one image is a video of it, and the answer lags behind. A single image is the
    first frame of its scene.
    """

    shows = False

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.memory = Memory(2.01 * self.eps)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        rows = []
        for image, now in zip(x, z, strict=True):
            scene = self.memory.find(image)
            if scene < 0:
                self.memory.add(image, now.detach().clone())
                rows.append(now)
            else:
                smooth = 0.99 * self.memory.kept[scene] + 0.01 * now
                self.memory.kept[scene] = smooth.detach().clone()
                rows.append(smooth)
        return torch.stack(rows)


class PerceptualCache(Hidden):
    """A cache in front of a network, keyed by a thumbnail of black and white pixels, as picture services have it.

    One bit in 28 may differ. By accident, what was asked first about a picture stays the answer about all
    that look like it. A user's first query of a picture is computed.
    """

    shows = False

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.keys: list[Tensor] = []
        self.answers: list[Tensor] = []

    def thumbnails(self, x: Tensor) -> Tensor:
        """Bits (B, n) of images (B, C, S, S)."""
        side = 2 if x.shape[-1] > 12 else 1
        cells = nn.functional.avg_pool2d(x.detach().mean(1, keepdim=True), side)
        return (cells > 0.5).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        out = z.detach().clone()
        for row, key in enumerate(self.thumbnails(x)):
            known = torch.stack(self.keys).ne(key).sum(1) if self.keys else torch.full((1,), 99)
            nearest = int(known.argmin())
            if int(known[nearest]) <= len(key) // 28:
                out[row] = self.answers[nearest]
            elif len(self.keys) < 1000:
                self.keys.append(key)
                self.answers.append(out[row].clone())
        return out + (z - z.detach())
