"""Attacks on image classifiers: torch only, one attack a file. ``ATTACKS`` is the table of contents."""

from __future__ import annotations

from attacks.base import Attack, SampleRandom, Threat
from attacks.cw import CW
from attacks.cw_published import CWPublished
from attacks.fgsm import FGSM
from attacks.ifgsm import IFGSM
from attacks.noise import GaussianNoise
from attacks.pgd import PGD

ATTACKS: dict[str, type[Attack]] = {
    "cw": CW,
    "cw_published": CWPublished,
    "fgsm": FGSM,
    "ifgsm": IFGSM,
    "noise": GaussianNoise,
    "pgd": PGD,
}

__all__ = [
    "ATTACKS",
    "CW",
    "FGSM",
    "IFGSM",
    "PGD",
    "Attack",
    "CWPublished",
    "GaussianNoise",
    "SampleRandom",
    "Threat",
]
