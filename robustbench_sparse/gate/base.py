"""What the gate's checks see, what they say, and how another way to feed a network is compared with the present one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, is_stochastic, noise_from
from robustbench_sparse.sources.preparation import UNKNOWN, Preparation

# ok; note: worth knowing; warn: a number of something else than is meant, maybe; stop: nothing is attacked.
Status = Literal["ok", "note", "warn", "stop", "skipped"]
IMAGES, LARGE_IMAGES = 500, 200  # that are looked at; of images with more values than LARGE the second
LARGE = 32_768
SCREENED, LARGE_SCREENED = 64, 24  # images on which another way is tried first
CLEARLY, CHANCE = 3.0, 1e-4  # points that another way has to gain, and how probable that may be by chance
NEAR_CHANCE = 0.1  # of the way from guessing to perfect
_BATCH_VALUES = 1 << 22  # values of images that are asked at once


@dataclass(frozen=True)
class Line:
    """What one check found.

    Attributes:
        check: its name.
        status: see ``Status``.
        text: what was found, and what to do.
    """

    check: str
    status: Status
    text: str

    def said(self) -> str:
        """The line, for people."""
        return f"{self.check:14}{self.status:8}{self.text}"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a check sees: a network and some of the images that it will be judged on.

    Attributes:
        model: in eval mode, on the images' device; it is a copy where it can be copied.
        x, y: images in [0, 1], (n, C, S, S), and labels (n,).
        names: of the data set's K classes.
        preparation: what its maker says of its images; what is in front of it already stands in the network.
        front: mean and standard deviation of the normalisation at its head, (C or 1,) each; None where none is known.
        expected: the clean accuracy that the user expects, in percent.
        claim: the one that its maker states of this data.
        black_box: it has no gradient.
    """

    model: nn.Module
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    names: tuple[str, ...]
    preparation: Preparation = UNKNOWN
    front: tuple[Tensor, Tensor] | None = None
    expected: float | None = None
    claim: float | None = None
    black_box: bool = False

    @property
    def stochastic(self) -> bool:
        """Whether the network says that it draws noise."""
        return is_stochastic(self.model)

    @cached_property
    def logits(self) -> Tensor:
        """Of all images as they are, float32 (n, K)."""
        return self.ask(self.x)

    @cached_property
    def right(self) -> Tensor:
        """Whether each image is classified right, (n,)."""
        return self.logits.argmax(1) == self.y

    @property
    def accuracy(self) -> float:
        """Of all images, in percent."""
        return 100 * float(self.right.float().mean())

    @torch.no_grad()
    def ask(self, x: Tensor, batch: int | None = None) -> Tensor:
        """Logits (B, K), float32, in parts; of a random network with the same noise every time."""
        size = batch or max(1, min(256, _BATCH_VALUES // max(1, x[0].numel())))
        out = [self.answer(part) for part in torch.split(x, size)]
        return torch.cat(out).float()

    def answer(self, x: Tensor) -> Tensor:
        """Logits (B, K) of one batch, with a graph where gradients are asked for."""
        with self.seeded(len(x)):
            out: Tensor = self.model(x.clone())
        return out

    @contextlib.contextmanager
    def seeded(self, count: int) -> Iterator[None]:
        """The same noise every time for a network that says it draws some; torch's own streams stay as they are."""
        if not self.stochastic:
            yield
            return
        with (
            torch.random.fork_rng(devices=[]),
            noise_from(self.model, SampleRandom.for_images(0, "gate", range(count))),
        ):
            torch.manual_seed(0)
            yield


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the gate.

    Attributes:
        name: one word.
        asks: what it asks, in a sentence.
        look: finds out.
    """

    name: str
    asks: str
    look: Callable[[Look], Line]


def better(s: Look, feed: Callable[[Tensor], Tensor]) -> float | None:
    """How many points more a network has right when images are fed in another way; None where that is not clear.

    Clear is a gain of at least ``CLEARLY`` points that chance brings with a probability of at most ``CHANCE``
    (McNemar's exact test, one-sided). Images that are wrong as it is go first: where too few of them turn right,
    that is all.

    Args:
        s: the network and its images.
        feed: images (B, C, H, W) -> what the network is given in their place.
    """
    n = len(s.y)
    wrong, right = (~s.right).nonzero().flatten(), s.right.nonzero().flatten()
    if 100 * len(wrong) / n < CLEARLY:
        return None
    first = wrong[: LARGE_SCREENED if s.x[0].numel() > LARGE else SCREENED]
    share = float(_right(s, feed, first).float().mean())
    if 100 * share * len(wrong) / n < CLEARLY:
        return None
    won = int(_right(s, feed, wrong).sum())
    lost = int((~_right(s, feed, right)).sum()) if len(right) else 0
    gain = 100 * (won - lost) / n
    if s.accuracy + gain < floor(len(s.names)):  # still guessing, only in another way
        return None
    if gain < CLEARLY:
        return None
    from scipy.stats import binomtest  # slow to import, and rarely asked for

    by_chance = binomtest(won, won + lost, 0.5, alternative="greater").pvalue > CHANCE
    return None if by_chance else gain


def floor(classes: int) -> float:
    """The accuracy in percent below which a network has learnt next to nothing: a tenth of the way from guessing."""
    chance = 100 / classes
    return chance + NEAR_CHANCE * (100 - chance)


def joined(values: Sequence[float]) -> str:
    """Numbers as an option takes them."""
    return ",".join(f"{v:.4g}" for v in values)


def _right(s: Look, feed: Callable[[Tensor], Tensor], places: Tensor) -> Tensor:
    return s.ask(feed(s.x[places])).argmax(1) == s.y[places]
