"""Defenses: the table of contents; a config names one by its key or by ``package.module:Class``."""

from __future__ import annotations

from defenses.adabreg import AdaBreg
from defenses.admm import ADMM
from defenses.base import (
    Asked,
    Defense,
    ImageSource,
    Log,
    Make,
    Step,
    chosen_weights,
    conv_weights,
    frozen_statistics,
    overrides,
    prunable,
)
from defenses.broken import Broken
from defenses.clip import CLIP
from defenses.controller import Controlled
from defenses.enresnet import EnResNet, Ensemble
from defenses.hold_zeros import HoldZeros
from defenses.l1_filter_prune import L1FilterPrune
from defenses.lasso import Lasso
from defenses.linbreg import LinBreg
from defenses.magnitude_prune import MagnitudePrune
from defenses.network_slimming import NetworkSlimming
from defenses.pgd_at import PGDAT
from defenses.proxsgd import ProxSGD
from defenses.regularisers import (
    GROUP_REGULARISERS,
    L0,
    L1,
    REGULARISERS,
    GroupL0,
    GroupLasso,
    L1Nonnegative,
    Nuclear,
    Regulariser,
    RegulariserEntry,
    SparseGroupLasso,
    TransformedL1,
    Zero,
    make_regulariser,
    prox_many,
)
from defenses.rgsm import RGSM
from defenses.rvscgd import RVSCGD
from defenses.rvsm import RVSM
from defenses.sparse_init import SparseInit, sparse_init
from defenses.spectral_penalty import SpectralPenalty
from defenses.splitting import Splitting
from defenses.target_sparsity import TargetSparsity

DEFENSES: dict[str, type[Defense]] = {
    "broken": Broken,
    "pgd_at": PGDAT,
    "clip": CLIP,
    "spectral_penalty": SpectralPenalty,
    "enresnet": EnResNet,
    "rgsm": RGSM,
    "rvsm": RVSM,
    "rvscgd": RVSCGD,
    "admm": ADMM,
    "magnitude_prune": MagnitudePrune,
    "lasso": Lasso,
    "l1_filter_prune": L1FilterPrune,
    "network_slimming": NetworkSlimming,
    "hold_zeros": HoldZeros,
    "sparse_init": SparseInit,
    "target_sparsity": TargetSparsity,
}

__all__ = [
    "ADMM",
    "CLIP",
    "DEFENSES",
    "GROUP_REGULARISERS",
    "L0",
    "L1",
    "PGDAT",
    "REGULARISERS",
    "RGSM",
    "RVSCGD",
    "RVSM",
    "AdaBreg",
    "Asked",
    "Broken",
    "Controlled",
    "Defense",
    "EnResNet",
    "Ensemble",
    "GroupL0",
    "GroupLasso",
    "HoldZeros",
    "ImageSource",
    "L1FilterPrune",
    "L1Nonnegative",
    "Lasso",
    "LinBreg",
    "Log",
    "MagnitudePrune",
    "Make",
    "NetworkSlimming",
    "Nuclear",
    "ProxSGD",
    "Regulariser",
    "RegulariserEntry",
    "SparseGroupLasso",
    "SparseInit",
    "SpectralPenalty",
    "Splitting",
    "Step",
    "TargetSparsity",
    "TransformedL1",
    "Zero",
    "chosen_weights",
    "conv_weights",
    "frozen_statistics",
    "make_regulariser",
    "overrides",
    "prox_many",
    "prunable",
    "sparse_init",
]
