"""Suites: named lists of attacks, from a quick look to a verdict that can be reported, each with its stated cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attacks import ATTACKS
from attacks.base import Attack
from robustbench_sparse.config.plugins import build

# Passes that a gradient is averaged over where the network is random; on any other network each image takes one.
EOT = 20

# Suite -> attack's label -> config entry. The losses are those that two classes are enough for.
SUITES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "fgsm": {"name": "fgsm", "eot": EOT},
        "pgd20_margin": {"name": "pgd", "steps": 20, "loss": "margin", "eot": EOT},
    },
    "standard": {
        "fgsm": {"name": "fgsm", "eot": EOT},
        "ifgsm20": {"name": "ifgsm", "steps": 20, "eot": EOT},
        "pgd50x3": {"name": "pgd", "steps": 50, "restarts": 3, "eot": EOT},
        "pgd50_margin": {"name": "pgd", "steps": 50, "loss": "margin", "eot": EOT},
        "apgd100": {"name": "apgd", "steps": 100, "eot": EOT},
        "apgd100_margin": {"name": "apgd", "steps": 100, "loss": "margin", "eot": EOT},
        # Without gradients: an image that only this one fools says that the network hides its own.
        "square500": {"name": "square", "queries": 500},
    },
    "full": {
        "autoattack": {"name": "autoattack", "eot": EOT},
        "apgd100_pma": {"name": "apgd", "steps": 100, "loss": "pma", "eot": EOT},
        # Where activations are sparsified AutoAttack misses points; on any other network it is a path of APGD.
        "smoothed": {"name": "smoothed", "steps": 100, "eot": EOT},
        "cw": {"name": "cw", "eot": EOT},
        "nattack": {"name": "nattack"},
        "square5000": {"name": "square", "queries": 5000},
    },
}

PURPOSE = {
    "quick": "a first look; too weak to report",
    "standard": "what a robust accuracy should rest on at least",
    "full": "for a number to report: AutoAttack, and what would show that it missed something",
}


def attacks_of(suite: str) -> dict[str, Attack]:
    """The attacks of a suite by their labels, built.

    Raises:
        KeyError: there is no such suite.
        UserError: an attack that is not in the table of contents.
    """
    base: Any = Attack  # abstract, which mypy does not take for a type[T]
    return {label: build(ATTACKS, entry, "attack", base) for label, entry in SUITES[suite].items()}


def cost_of(attacks: Iterable[Attack]) -> tuple[int, int]:
    """Gradient passes and queries per image at most, on a network that is not random.

    A random one takes as many times that as an attack's ``eot`` says. Images fooled early take fewer.
    """
    gradients, queries = 0, 0
    for attack in attacks:
        gradients += attack.passes // int(getattr(attack, "eot", 1) or 1)
        queries += int(getattr(attack, "queries", 0))
    return gradients, queries
