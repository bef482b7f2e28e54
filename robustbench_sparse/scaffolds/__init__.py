"""Skeletons of plug-ins: a file that works, and the test of what every plug-in of its kind has to do."""

from __future__ import annotations

from robustbench_sparse.scaffolds.attack import ATTACK
from robustbench_sparse.scaffolds.check import CHECK
from robustbench_sparse.scaffolds.defense import DEFENSE
from robustbench_sparse.scaffolds.skeleton import Skeleton

SKELETONS: dict[str, Skeleton] = {"attack": ATTACK, "defense": DEFENSE, "check": CHECK}
