"""Attacks on image classifiers: torch only, one attack a file. ``ATTACKS`` is the table of contents."""

from __future__ import annotations

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.base import Attack, SampleRandom, Threat
from attacks.cw import CW
from attacks.cw_published import CWPublished
from attacks.dct import DCT
from attacks.fab import FAB
from attacks.fgsm import FGSM
from attacks.geometric import Geometric
from attacks.ifgsm import IFGSM
from attacks.nattack import NAttack
from attacks.noise import GaussianNoise
from attacks.pgd import PGD
from attacks.pgd_clip import PGDClip
from attacks.pgd_mse import PGDMse
from attacks.random_search import RandomSearch
from attacks.smoothed import Smoothed
from attacks.square import Square
from attacks.transfer import Transfer

ATTACKS: dict[str, type[Attack]] = {
    "apgd": APGD,
    "autoattack": AutoAttack,
    "cw": CW,
    "cw_published": CWPublished,
    "dct": DCT,
    "fab": FAB,
    "fgsm": FGSM,
    "geometric": Geometric,
    "ifgsm": IFGSM,
    "nattack": NAttack,
    "noise": GaussianNoise,
    "pgd": PGD,
    "pgd_clip": PGDClip,
    "pgd_mse": PGDMse,
    "random_search": RandomSearch,
    "smoothed": Smoothed,
    "square": Square,
    "transfer": Transfer,
}

__all__ = [
    "APGD",
    "ATTACKS",
    "CW",
    "DCT",
    "FAB",
    "FGSM",
    "IFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "CWPublished",
    "GaussianNoise",
    "Geometric",
    "NAttack",
    "PGDClip",
    "RandomSearch",
    "SampleRandom",
    "Smoothed",
    "Square",
    "Threat",
    "Transfer",
]
