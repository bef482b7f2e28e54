"""What a network expects of its images: size, crop, interpolation, and a normalisation by name or in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_sparse.foundation.errors import UserError, near

Numbers = tuple[float, ...]

# Name -> mean and standard deviation per channel, of images in [0, 1]. What publications and libraries agree on; for
# CIFAR-10 and MNIST that is the pixels' own.
NORMALISATIONS: dict[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
}
NONE = "none"  # takes a network's own normalisation away


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images come to a network, as its maker says.

    Attributes:
        mean, std: of the normalisation in front of the network, one value or one per channel; None: images in [0, 1].
        size: pixels of a side; None where nothing is said.
        crop: share of the resized image that is kept at its centre, in (0, 1]; None: the whole image becomes a square.
        interpolation: of resizing, as ``data.image_folder`` names it; None where nothing is said.
        origin: who says so, for people.
    """

    mean: Numbers | None = None
    std: Numbers | None = None
    size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    origin: str = ""

    def said(self) -> str:
        """All of it in one line."""
        parts = [said_of(self.mean, self.std)]
        if self.size is not None:
            parts.append(f"images of {self.size} x {self.size} pixels")
        if self.interpolation is not None:
            parts.append(self.interpolation)
        if self.crop is not None:
            parts.append(f"crop {self.crop:g}")
        return ", ".join(parts) + (f" ({self.origin})" if self.origin else "")

    def data_settings(self) -> dict[str, Any]:
        """The same as settings of the data set ``image_folder``; empty where no size is known."""
        if self.size is None:
            return {}
        settings: dict[str, Any] = {"size": self.size, "interpolation": self.interpolation or "bilinear"}
        return settings if self.crop is None else {**settings, "crop": self.crop}

    def record(self) -> dict[str, Any]:
        """Plain values, for a row's record."""
        return {
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "size": self.size,
            "crop": self.crop,
            "interpolation": self.interpolation,
        }


UNKNOWN = Preparation()


def said_of(mean: Numbers | None, std: Numbers | None) -> str:
    """A normalisation in words: its numbers, and its name where it has one."""
    if mean is None or std is None:
        return "no normalisation in front"
    known = [name for name, pair in NORMALISATIONS.items() if _same(pair, (mean, std))]
    name = f" [{known[0]}]" if known else ""
    return f"mean {_numbers(mean)}, std {_numbers(std)}{name}"


def normalisation_of(mean: str | None, std: str | None) -> tuple[Numbers, Numbers] | None:
    """What ``--mean`` and ``--std`` ask for: numbers with commas between, or a name of ``NORMALISATIONS`` for both.

    Args:
        mean, std: the options' texts; a name may stand in either of them or in both.

    Returns:
        Mean and standard deviation; None for ``none``.

    Raises:
        UserError: neither, only one of two, an unknown name, or numbers that cannot be meant.
    """
    names = [text for text in (mean, std) if text is not None and not _is_numeric(text)]
    if names:
        name = names[0].strip().lower()
        if len(names) < sum(text is not None for text in (mean, std)) or len(set(names)) > 1:
            raise UserError(
                f"--mean and --std: expected one name for both, or numbers in both, got {mean} and {std}"
            )
        if name == NONE:
            return None
        if name not in NORMALISATIONS:
            known = [*NORMALISATIONS, NONE]
            raise UserError(
                f"--mean: expected numbers or one of {', '.join(known)}, got {name!r}{near(name, known)}"
            )
        return NORMALISATIONS[name]
    if mean is None or std is None:
        there, missing = ("--mean", "--std") if std is None else ("--std", "--mean")
        raise UserError(f"{there}: expected {missing}, too (as many numbers, or a name for both)")
    first, second = _parsed("--mean", mean), _parsed("--std", std)
    if min(second) <= 0:
        raise UserError(f"--std: expected numbers > 0, got {std}")
    if max(first) > 1 or max(second) > 1.5:
        raise UserError(f"--mean and --std: of images in [0, 1], divide by 255; got {mean} and {std}")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise UserError(f"--mean and --std: expected as many numbers, got {len(first)} and {len(second)}")
    longest = max(len(first), len(second))
    return first * (longest // len(first)), second * (longest // len(second))


def crop_of(size: int, shorter: int) -> float | None:
    """The share of an image resized to ``shorter`` pixels that a centre of ``size`` pixels is; None for all of it."""
    if shorter <= size:
        return 1.0
    share = round(size / shorter, 6)
    # ``data.decode`` resizes to floor(size / share): it has to come to the same number of pixels again.
    return share if math.floor(size / share) == shorter else size / (shorter + 0.5)


def _same(one: tuple[Sequence[float], ...], two: tuple[Sequence[float], ...]) -> bool:
    return all(
        all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(_spread(x, y), _spread(y, x), strict=False))
        for x, y in zip(one, two, strict=True)
    )


def _spread(values: Sequence[float], like: Sequence[float]) -> list[float]:
    return list(values) * (len(like) if len(values) == 1 else 1)


def _numbers(values: Numbers) -> str:
    return " ".join(f"{v:.4g}" for v in values)


def _is_numeric(text: str) -> bool:
    return text.strip()[:1] in "0123456789.+-"


def _parsed(option: str, text: str) -> Numbers:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(v) for v in values):
        raise UserError(f"{option}: expected numbers with commas between, as in 0.49,0.48,0.45, got {text!r}")
    return values
