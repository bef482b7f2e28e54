"""What a source of networks is asked for, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.sources.preparation import UNKNOWN, Preparation


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user named.

    Attributes:
        name: what stands behind the source's prefix; of a file, its path.
        weights: file of weights, where the user names one.
        trusted: the user trusts the file to run code.
    """

    name: str
    weights: Path | None = None
    trusted: bool = False


@dataclass(frozen=True, kw_only=True)
class Sourced:
    """A network from elsewhere.

    Attributes:
        model: images in [0, 1], (B, C, H, W) -> logits (B, K); eval mode, on the CPU.
        name: what to call it.
        weights: the file that its weights were read from.
        preparation: what is in front of it, and what images it was made for.
        black_box: it answers and has no gradient.
        labels: names of its classes, in the order of its logits; empty where they are not known.
        claim: the accuracy that its maker states, in percent, of the data set ``claim_of``.
        notes: what was done to it on the way, a sentence each.
    """

    model: nn.Module
    name: str
    weights: Path | None = None
    preparation: Preparation = UNKNOWN
    black_box: bool = False
    labels: tuple[str, ...] = ()
    claim: float | None = None
    claim_of: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A place where networks come from. A subclass writes ``load``; it is asked nothing over a network.

    Attributes:
        key: prefix of its names, ``timm`` of ``timm:resnet18``; or the ending of its files, with the dot.
        extra: the extra that it needs; empty for none.
        example: a name, for people.
    """

    key: ClassVar[str]
    extra: ClassVar[str] = ""
    example: ClassVar[str]

    @abstractmethod
    def load(self, request: Request) -> Sourced:
        """Find a network.

        Raises:
            UserError: nothing of that name, weights that are not there, do not fit or could run code; with what to do.
        """


def check_file(path: Path, most: int) -> None:
    """UserError unless a regular file of at most so many bytes is there."""
    if not path.is_file():
        raise UserError(f"{path}: {'no regular' if path.exists() else 'no such'} file")
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path}: refused: {size} bytes, more than the {most} that are read")


def no_weights_here(where: str) -> None:
    """UserError for a source whose networks have their weights with them."""
    raise UserError(f"--weights: {where} has its own weights")
