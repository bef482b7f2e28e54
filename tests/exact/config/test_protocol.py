"""A row's protocol: suites by name, everything else by what determines its numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attacks.base import Threat
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.protocol import CERTIFICATE, SUITE_VERSIONS, protocol
from robustbench_sparse.config.suites import SUITES, attacks_of
from robustbench_sparse.foundation.files import plain

LINF: dict[str, Any] = {"norm": "linf", "eps": 0.1}


def manifest(suite: str, threat: Threat | None = None, certificate: str = "off") -> dict[str, Any]:
    threat = threat or Threat(norm="linf", eps=0.1)
    plans = [AttackPlan(k, SUITES[suite][k]["name"], a, threat) for k, a in attacks_of(suite).items()]
    made = {
        "attacks": [p.label for p in plans],
        "settings": {p.label: plain(p.record()) for p in plans},
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "certificate": certificate,
    }
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_its_name_whatever_the_threat(suite: str) -> None:
    """Where this fails, a suite was changed: add its digest to ``SUITE_VERSIONS`` with the next version."""
    name = protocol(manifest(suite)).removesuffix("+off")
    assert name.rpartition("-")[0] == suite
    assert protocol(manifest(suite, Threat(norm="l2", eps=2.0))) == f"{name}+off"


def test_versions_are_named_once() -> None:
    assert len(set(SUITE_VERSIONS.values())) == len(SUITE_VERSIONS)


def test_the_certificate_is_part_of_it() -> None:
    asked = manifest("quick", certificate="full")
    assert protocol(asked, CERTIFICATE) == f"quick-1+full-{CERTIFICATE}"
    assert protocol(asked, 1) == "quick-1+full-1"
    assert protocol(asked) == "quick-1+off"
    assert protocol(manifest("quick"), CERTIFICATE) == "quick-1+off"


def test_labels_and_their_order_do_not_matter_and_settings_do() -> None:
    suite = manifest("quick")
    turned = {f"my {k}": v for k, v in reversed(suite["settings"].items())}
    assert protocol({**suite, "attacks": list(turned), "settings": turned}) == "quick-1+off"
    first = suite["attacks"][0]
    changed = {**suite["settings"], first: {**suite["settings"][first], "steps": 3}}
    custom = protocol({**suite, "settings": changed})
    assert custom.startswith("custom-")
    assert custom == protocol({**suite, "settings": changed})
    fewer = {**suite, "attacks": suite["attacks"][1:]}
    assert protocol(fewer).startswith("custom-")
    assert protocol(fewer) != custom
    wider = {**suite["settings"], first: {**suite["settings"][first], "threat": {"norm": "linf", "eps": 0.2}}}
    assert protocol({**suite, "settings": wider}).startswith("custom-")


def test_folders_that_say_little() -> None:
    assert protocol({"attacks": [], "threat": LINF}) == "clean+off"
    assert protocol({"attacks": ["pgd"], "threat": LINF}) == "unknown+off"
    assert (
        protocol({"attacks": ["pgd"], "settings": {}, "threat": LINF, "certificate": "quick"}, 2)
        == "unknown+quick-2"
    )
