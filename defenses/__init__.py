"""Defenses: the table of contents; a config names one by its key or by ``package.module:Class``."""

from __future__ import annotations

from defenses.base import (
    Asked,
    Defense,
    Log,
    Make,
    Step,
    prunable,
)
from defenses.regularisers import (
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
)
from defenses.robust.broken import Broken
from defenses.robust.clip import CLIP
from defenses.robust.enresnet import EnResNet, Ensemble
from defenses.robust.pgd_at import PGDAT
from defenses.robust.spectral_penalty import SpectralPenalty
from defenses.sparse.adabreg import AdaBreg
from defenses.sparse.admm import ADMM
from defenses.sparse.hold_zeros import HoldZeros
from defenses.sparse.l1_filter_prune import L1FilterPrune
from defenses.sparse.lasso import Lasso
from defenses.sparse.linbreg import LinBreg
from defenses.sparse.magnitude_prune import MagnitudePrune
from defenses.sparse.network_slimming import NetworkSlimming
from defenses.sparse.proxsgd import ProxSGD
from defenses.sparse.rgsm import RGSM
from defenses.sparse.rvscgd import RVSCGD
from defenses.sparse.rvsm import RVSM
from defenses.sparse.sparse_init import SparseInit, sparse_init
from defenses.sparse.target_sparsity import TargetSparsity

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
    "Defense",
    "EnResNet",
    "Ensemble",
    "GroupL0",
    "GroupLasso",
    "HoldZeros",
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
    "Step",
    "TargetSparsity",
    "TransformedL1",
    "Zero",
    "make_regulariser",
    "prunable",
    "sparse_init",
]
