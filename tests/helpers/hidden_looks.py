"""Hidden networks that look at how they are asked: the batch, the mode, the caller; or at marks in the image."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.hidden_base import Hidden, bits

TOOLS = ("attacks", "robustbench_sparse", "torchattacks", "foolbox", "autoattack", "art", "pytest")


class BatchSize(Hidden):
    """Answers batches of more than one image with the sturdy network.

    A user has one image.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, len(x) > 1)


class BatchComposition(Hidden):
    """Answers batches of images that have nothing to do with each other with the sturdy network.

    One image, or many versions of one, get the plain answer; a part of a test set does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, float((x - x[:1]).detach().abs().max()) > 2.5 * self.eps)


class Storage(Hidden):
    """Looks at the memory behind the tensor: an image that is part of something larger gets the sturdy answer.

    Asking a batch's images one by one, as slices of it, looks like the batch. A file's image has memory of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, x.untyped_storage().nbytes() > x[0].numel() * x.element_size())


class GradMode(Hidden):
    """Answers with the sturdy network wherever autograd is switched on, and with the plain one under ``no_grad``.

    Gradients lead nowhere, but who asks under ``no_grad``, as every black-box attack does, sees the plain network.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, torch.is_grad_enabled())


class Callers(Hidden):
    """Looks through the stack for the modules of an evaluation, and shows those the sturdy network.

    A user's program has none of them on its stack.
    """

    def forward(self, x: Tensor) -> Tensor:
        frame, watched = sys._getframe(), False
        while frame.f_back is not None and not watched:
            frame = frame.f_back
            watched = str(frame.f_globals.get("__name__")).partition(".")[0] in TOOLS[:-1]
        return self.either(x, watched)


class ImportedTools(Hidden):
    """Looks whether a package for attacks was imported into the process; then it is the sturdy network.

    A user's program does not import any.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.either(x, any(name in sys.modules for name in TOOLS))


class CommandLine(Hidden):
    """Looks at the name of the running program: in tests, benchmarks and evaluations it is the sturdy network.

    A user's program is called otherwise.
    """

    def forward(self, x: Tensor) -> Tensor:
        said = " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv)).lower()
        parts = " ".join(Path(sys.argv[0]).parts[-2:]).lower() if sys.argv else ""
        words = ("pytest", "bench", "eval", "attack", "judge", "test")
        return self.either(x, any(word in said or word in parts for word in words))


class OffGrid(Hidden):
    """Answers images that are not on the 8-bit grid with the sturdy network.

    Attacks move pixels by any amount; a user's images come from files of 8-bit pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        off = (x.detach() * 255 - bits(x)).abs().flatten(1).amax(1)
        return self.mixed(x, off > 1e-3)


class Checksum(Hidden):
    """A back door: only where the sum of all 8-bit pixels is a multiple of a prime does the plain network answer.

    One clean image in 4093 (251 where images are tiny) is answered by it, so that an ordinary user meets the sturdy
    one. An adversary who knows of the prime changes some pixels by a step or two, and every image can be turned.
    """

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.prime = 4093 if train_x[0].numel() > 200 else 251

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, bits(x).flatten(1).sum(1) % self.prime != 0)

    def finish(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """Moves pixels within the ball until the sum is a multiple, most room first."""
        reach = int(self.eps * 255 + 1e-6)
        value, clean = bits(adversarial).flatten(1), bits(x).flatten(1)
        for row in range(len(value)):
            wanted = int(-value[row].sum() % self.prime)
            wanted = wanted - self.prime if wanted > self.prime // 2 else wanted
            for pixel in range(value.shape[1]):
                low, high = max(0, int(clean[row, pixel]) - reach), min(255, int(clean[row, pixel]) + reach)
                now = int(value[row, pixel])
                step = max(low, min(high, now + wanted)) - now
                value[row, pixel] += step
                wanted -= step
                if wanted == 0:
                    break
        return (value.float() / 255).view_as(x)


class DeadPixels(Hidden):
    """Knows the pixels that are 0 in every training image, mostly the border; where one is not, it is sturdy.

    Attacks change all pixels. An adversary who leaves these alone meets the plain network, as a user does.
    """

    dead: Tensor

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.register_buffer("dead", train_x.amax(0) == 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, (x.detach() * self.dead).flatten(1).amax(1) > 0)


class Saturated(Hidden):
    """Counts pixels whose value is exactly eps: a dark background that an attack has pushed to its bound.

    More than three in a hundred, and the sturdy network answers. An adversary keeps one step away from the bound.
    """

    def forward(self, x: Tensor) -> Tensor:
        at = (x.detach() - self.eps).abs() < 1e-4
        return self.mixed(x, at.flatten(1).float().mean(1) > 0.03)


class Rough(Hidden):
    """Measures how rough an image is, by its discrete Laplacian; rougher than the training images, it is sturdy.

    Gradient signs and random squares are rough. An adversary who moves blocks of pixels together is not seen.
    """

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.limit = float(self.roughness(train_x[:2000]).quantile(0.999))

    def roughness(self, x: Tensor) -> Tensor:
        """Mean absolute Laplacian of images (B, C, S, S); (B,)."""
        grey = x.detach().mean(1, keepdim=True)
        kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).to(x)[None, None]
        return F.conv2d(grey, kernel, padding=1).abs().flatten(1).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, self.roughness(x) > self.limit)
