"""What a robust accuracy was judged by, in one word: a row's attacks and its certificate, each with its version.

``standard-1+quick-2`` is the first version of the suite ``standard`` with the second version of the quick certificate.
Numbers of different protocols do not stand in one ranking: a stronger protocol gives smaller ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Raised where checks are added or mended, so that rows examined before and after are told apart.
CERTIFICATE = 3
OFF, CUSTOM, UNKNOWN = "off", "custom", "unknown"
# Digest of all attacks with their settings -> the suite they make up, with its version. A suite that is changed gets a
# further line; those before it stay, so that tables of then keep their names.
SUITE_VERSIONS = {"f81a299f": "quick-1", "e2211529": "standard-1", "017dd3fb": "full-1", "5c6ebde1": "full-2"}


def protocol(
    manifest: Mapping[str, Any], certificate: int = 0, seconds: int | None = None, own: str = ""
) -> str:
    """The protocol of a row.

    Args:
        manifest: the benchmark's, see ``runs.manifest``: its ``attacks``, ``settings``, ``threat`` and ``certificate``.
        certificate: version of the row's certificate; 0 where it has none.
        seconds: the budget of time that made it leave checks out; None where it has all of them.
        own: names the checks of the user's own beside, see ``own_digest``; empty where there are none.

    Returns:
        The attacks, ``+``, the certificate's level with its version, or ``off``; behind it ``-60s`` where it left out
        checks for want of time, and ``-own`` with a hash where there were others beside. Attacks are a suite's name
        with its version where they are exactly that suite under the benchmark's threat, whatever their labels; else
        ``custom-`` and a hash of all that determines their numbers. ``unknown`` in a folder that says nothing of them.
    """
    level = manifest.get("certificate", OFF)
    made = (
        f"{level}-{certificate}" + ("" if seconds is None else f"-{seconds}s") + (f"-own{own}" if own else "")
    )
    return f"{attacks_of(manifest)}+{OFF if level == OFF or not certificate else made}"


def attacks_of(manifest: Mapping[str, Any]) -> str:
    """The part of a protocol that speaks of the attacks."""
    labels, settings = manifest["attacks"], manifest.get("settings", {})
    if not labels:
        return "clean"
    if not all(isinstance(settings.get(label), dict) for label in labels):
        return UNKNOWN
    found = digest([settings[label] for label in labels], manifest["threat"])
    return SUITE_VERSIONS.get(found, f"{CUSTOM}-{found}")


def digest(records: list[Mapping[str, Any]], threat: Mapping[str, Any]) -> str:
    """A hash of attacks' records, eight hexadecimal digits; neither labels nor their order matter.

    Args:
        records: of ``AttackPlan.record``.
        threat: the benchmark's, which is no part of it; an attack's own is where it differs.
    """
    plain = [{k: v for k, v in r.items() if k != "threat" or v != dict(threat)} for r in records]
    texts = sorted(json.dumps(record, sort_keys=True) for record in plain)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def own_digest(code: Mapping[str, str]) -> str:
    """A hash of a user's own checks, eight hexadecimal digits, given what names the code of each."""
    return hashlib.sha256(json.dumps(dict(code), sort_keys=True).encode()).hexdigest()[:8]
