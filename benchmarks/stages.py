"""Where an ensemble's time goes: a clock at each of its attacks, and what the machine could do at best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import Attack, AutoAttack, Threat
from attacks.base import SampleRandom
from benchmarks.lines import Line
from benchmarks.peers import Peer
from benchmarks.timing import Spread, clock

NAMES = ("APGD-CE", "APGD-T", "FAB-T", "Square")


@dataclass
class Stages:
    """Seconds that each attack of the ensemble took, and the images that came to it, over all batches.

    Attributes:
        device: what is waited for before the clock is read.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def timed(self, name: str, images: int, call: Callable[[], Tensor]) -> Tensor:
        """The result of a call that belongs to a stage."""
        start = clock(self.device)
        out = call()
        self.seconds[name] += clock(self.device) - start
        self.images[name] += images
        return out


@dataclass(frozen=True, kw_only=True)
class Clocked(Attack):
    """An attack under the clock.

    Args:
        name: of the stage.
        inner: the attack.
        stages: where its time goes.
    """

    name: str
    inner: Attack
    stages: Stages

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """What the attack gives, (B, C, H, W)."""
        return self.stages.timed(self.name, len(y), lambda: self.inner.run(model, x, y, threat, random))


@dataclass(frozen=True, kw_only=True)
class ClockedAutoAttack(AutoAttack):
    """AutoAttack with a clock at each of its attacks.

    Args:
        stages: where their time goes.
    """

    stages: Stages

    def attacks(self, classes: int, towards: bool = False) -> list[Attack]:
        """The ensemble, clocked."""
        plain = super().attacks(classes, towards)
        return [
            Clocked(name=name, inner=inner, stages=self.stages, target=inner.target)
            for name, inner in zip(NAMES, plain, strict=False)
        ]


def clocked_torchattacks(attack: object, stages: Stages) -> Peer:
    """torchattacks' AutoAttack, clocked in the same way."""
    ensemble = attack._autoattack  # type: ignore[attr-defined]
    ensemble.attacks = [
        lambda x, y, inner=inner, name=name: stages.timed(name, len(y), lambda: inner(x, y))
        for name, inner in zip(NAMES, list(ensemble.attacks), strict=True)
    ]
    out: Peer = attack  # type: ignore[assignment]
    return out


def lines(what: str, ours: Stages, peer: str, theirs: Stages) -> list[Line]:
    """A line of the table per stage: seconds on both sides, for the same images at the ensemble's start."""
    own, other = sum(ours.seconds.values()), sum(theirs.seconds.values())
    out = []
    for name in NAMES:
        mine, his = ours.seconds[name], theirs.seconds[name]
        out.append(
            Line(
                f"{what}: {name}",
                "s",
                Spread.of([mine]),
                peer,
                Spread.of([his]),
                his / mine if mine else None,
                note=f"{ours.images[name]} and {theirs.images[name]} images came to it; "
                f"{100 * mine / own:.0f} % and {100 * his / other:.0f} % of the time",
            )
        )
    return out


def has_amx() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in tiles (AMX), as Linux says."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any("amx_bf16" in line.split() for line in said.splitlines() if line.startswith("flags"))


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 7) -> float:
    """Operations per second of a plain matrix product, two for each multiply-accumulate; the best of some repeats."""
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        start = clock(device)
        a @ b
        seconds.append(clock(device) - start)
    return 2 * size**3 / min(seconds)
