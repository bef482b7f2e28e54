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
from defenses.robust.awp import AWP
from defenses.robust.broken import Broken
from defenses.robust.clip import CLIP
from defenses.robust.ema import EMA
from defenses.robust.enresnet import EnResNet, Ensemble
from defenses.robust.fgsm_rs import FGSMRS
from defenses.robust.label_smoothing import LabelSmoothing
from defenses.robust.mart import MART
from defenses.robust.mean_sparse import MeanSparse
from defenses.robust.n_fgsm import NFGSM
from defenses.robust.pgd_at import PGDAT
from defenses.robust.quantise import Quantise
from defenses.robust.spectral_penalty import SpectralPenalty
from defenses.robust.trades import TRADES
from defenses.sparse.adabreg import AdaBreg
from defenses.sparse.admm import ADMM
from defenses.sparse.flying_bird import FlyingBird
from defenses.sparse.hold_zeros import HoldZeros
from defenses.sparse.hydra import Hydra
from defenses.sparse.l1_filter_prune import L1FilterPrune
from defenses.sparse.lasso import Lasso
from defenses.sparse.linbreg import LinBreg
from defenses.sparse.magnitude_prune import MagnitudePrune
from defenses.sparse.network_slimming import NetworkSlimming
from defenses.sparse.proxsgd import ProxSGD
from defenses.sparse.rgsm import RGSM
from defenses.sparse.rigl import RigL
from defenses.sparse.rvscgd import RVSCGD
from defenses.sparse.rvsm import RVSM
from defenses.sparse.s2ap import S2AP
from defenses.sparse.set_training import SET
from defenses.sparse.sparse_init import SparseInit, sparse_init
from defenses.sparse.target_sparsity import TargetSparsity

DEFENSES: dict[str, type[Defense]] = {
    "broken": Broken,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "mart": MART,
    "n_fgsm": NFGSM,
    "fgsm_rs": FGSMRS,
    "awp": AWP,
    "label_smoothing": LabelSmoothing,
    "ema": EMA,
    "clip": CLIP,
    "spectral_penalty": SpectralPenalty,
    "enresnet": EnResNet,
    "mean_sparse": MeanSparse,
    "quantise": Quantise,
    "rgsm": RGSM,
    "rvsm": RVSM,
    "rvscgd": RVSCGD,
    "admm": ADMM,
    "magnitude_prune": MagnitudePrune,
    "lasso": Lasso,
    "l1_filter_prune": L1FilterPrune,
    "network_slimming": NetworkSlimming,
    "hold_zeros": HoldZeros,
    "hydra": Hydra,
    "s2ap": S2AP,
    "set": SET,
    "rigl": RigL,
    "flying_bird": FlyingBird,
    "sparse_init": SparseInit,
    "target_sparsity": TargetSparsity,
}

__all__ = [
    "ADMM",
    "AWP",
    "CLIP",
    "DEFENSES",
    "EMA",
    "FGSMRS",
    "L0",
    "L1",
    "MART",
    "NFGSM",
    "PGDAT",
    "REGULARISERS",
    "RGSM",
    "RVSCGD",
    "RVSM",
    "S2AP",
    "SET",
    "TRADES",
    "AdaBreg",
    "Asked",
    "Broken",
    "Defense",
    "EnResNet",
    "Ensemble",
    "FlyingBird",
    "GroupL0",
    "GroupLasso",
    "HoldZeros",
    "Hydra",
    "L1FilterPrune",
    "L1Nonnegative",
    "LabelSmoothing",
    "Lasso",
    "LinBreg",
    "Log",
    "MagnitudePrune",
    "Make",
    "MeanSparse",
    "NetworkSlimming",
    "Nuclear",
    "ProxSGD",
    "Quantise",
    "Regulariser",
    "RegulariserEntry",
    "RigL",
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
