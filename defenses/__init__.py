"""Defenses: the table of contents; a config names one by its key or by ``package.module:Class``."""

from __future__ import annotations

from defenses.base import (
    Defense,
    ImageSource,
    Log,
    Make,
    Step,
    conv_weights,
    frozen_statistics,
    overrides,
    prunable,
)
from defenses.broken import Broken
from defenses.clip import CLIP
from defenses.controller import Controlled
from defenses.enresnet import EnResNet, Ensemble
from defenses.pgd_at import PGDAT
from defenses.regularisers import REGULARISERS, GroupL0, GroupLasso, Regulariser
from defenses.rgsm import RGSM
from defenses.spectral_penalty import SpectralPenalty

DEFENSES: dict[str, type[Defense]] = {
    "broken": Broken,
    "pgd_at": PGDAT,
    "clip": CLIP,
    "spectral_penalty": SpectralPenalty,
    "enresnet": EnResNet,
    "rgsm": RGSM,
}

__all__ = [
    "CLIP",
    "DEFENSES",
    "PGDAT",
    "REGULARISERS",
    "RGSM",
    "Broken",
    "Controlled",
    "Defense",
    "EnResNet",
    "Ensemble",
    "GroupL0",
    "GroupLasso",
    "ImageSource",
    "Log",
    "Make",
    "Regulariser",
    "SpectralPenalty",
    "Step",
    "conv_weights",
    "frozen_statistics",
    "overrides",
    "prunable",
]
