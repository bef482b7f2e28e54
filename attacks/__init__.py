"""Attacks on image classifiers: torch only, one attack a file. ``ATTACKS`` is the table of contents."""

from __future__ import annotations

from attacks.base import Attack, SampleRandom, Threat
from attacks.fgsm import FGSM
from attacks.ifgsm import IFGSM
from attacks.noise import GaussianNoise
from attacks.pgd import PGD

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "ifgsm": IFGSM,
    "noise": GaussianNoise,
    "pgd": PGD,
}

__all__ = ["ATTACKS", "FGSM", "IFGSM", "PGD", "Attack", "GaussianNoise", "SampleRandom", "Threat"]
