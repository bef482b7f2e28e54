"""One table, one config: what a table is made by, and where that of a changed config goes.

A config that is changed on the command line is a trial: its table goes to a folder of its own beside the benchmark's,
``<benchmark>@<change>``, which takes over the trainings that the change does not touch. A config file that was changed
may add rows, columns and seeds to its table; anything else would put other numbers into the same cells, and is refused
unless the user says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.schema import LEVELS
from robustbench_sparse.foundation.errors import UserError, shown
from robustbench_sparse.foundation.files import plain, read_json
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import read_manifest, table_of

MARK = "@"
_LONGEST = 80  # characters of a variant's name
# Keys that change no number: they name no variant.
_WITHOUT_EFFECT = (
    "evaluation.certificate",
    "evaluation.certificate_seconds",
    "evaluation.compile",
    "evaluation.engine",
    "evaluation.batch_size",
    "threads",
    "resources.cpus",
    "resources.gpus",
    "resources.memory",
    "resources.minutes",
    "source",
)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first key path in which a table would not only grow, with both values; empty where it only grows."""
    grows = ("attacks", "shifts", "runs")
    for key in dict.fromkeys((*old, *new)):
        if key == "seeds":
            lost = [s for s in old.get(key, []) if s not in new.get(key, [])]
            if lost:
                return f"seeds: {shown(old[key])} there, {shown(new.get(key))} here"
        elif key in grows:
            for label, record in old.get(key, {}).items():
                if label not in new.get(key, {}):
                    return f"{key}.{label}: there, not here"
                if record != new[key][label]:
                    return _deeper(f"{key}.{label}", record, new[key][label])
        elif old.get(key) != new.get(key):
            return _deeper(key, old.get(key), new.get(key))
    return ""


def _deeper(path: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                return _deeper(f"{path}.{key}", old.get(key), new.get(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return _deeper(f"{path}.{i}", a, b)
    return f"{path}: {shown(old)} there, {shown(new)} here"


def variant_name(changes: Sequence[str]) -> str:
    """A name for changes that a folder can bear; different changes have different names."""
    kept = [change for change in changes if change.partition("=")[0] not in _WITHOUT_EFFECT]
    text = re.sub(r"[\[\]]", "", ",".join(kept))
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text).removeprefix("evaluation.")
    if name != text.removeprefix("evaluation.") or len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def named(plan: Plan, base: Plan | None, changes: Sequence[str], variant: str | None) -> Plan:
    """The plan under its folder's name: the benchmark's own where the changes leave its table as it is.

    Args:
        plan: of the changed config.
        base: of the config as it stands; None where it makes no plan without the changes.
        changes: ``key.path=value``, as they were given.
        variant: the user's own name for the variant.

    Raises:
        UserError: a name that no folder can bear.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,80}", variant):
        raise UserError(f"--variant: expected letters, digits and any of _ . , = + -, got {shown(variant)}")
    given = any(change.partition("=")[0] == "name" for change in changes)
    if variant is None and given and (base is None or plan.config.name != base.config.name):
        return plan  # the change gives the table a name of its own
    if variant is None and base is not None and (not changes or table_of(plan) == table_of(base)):
        return plan
    name = f"{plan.config.name}{MARK}{variant or variant_name(changes)}"
    return dataclasses.replace(plan, config=plan.config.model_copy(update={"name": name}))


def siblings(folder: Path) -> list[Path]:
    """The other tables of the same benchmark: trainings may be there already."""
    base = folder.name.partition(MARK)[0]
    found = [folder.parent / base, *sorted(folder.parent.glob(f"{base}{MARK}*"))]
    return [path for path in found if path != folder and (path / names.RUNS).is_dir()]


def fitting(folder: Path, plan: Plan, *, replace: bool) -> Plan:
    """The plan as it may go into a folder, with the certificates that the table there has already.

    Raises:
        UserError: the folder holds a table that this plan would not only add to.
    """
    if not (folder / names.BENCHMARK).is_file():
        return plan
    manifest = read_manifest(folder)
    changed = difference(manifest["table"], table_of(plan)) if manifest["table"] else ""
    if changed and not replace:
        raise UserError(
            f"{folder}: holds the table of another config ({changed}): give this one another `name:`, put it beside "
            "with --variant NAME, or replace the table with --replace"
        )
    asked, there = plan.config.evaluation.certificate, manifest["certificate"]
    if changed or LEVELS.index(there) <= LEVELS.index(asked):
        return plan
    evaluation = plan.config.evaluation.model_copy(
        update={"certificate": there, "certificate_seconds": manifest["certificate_seconds"]}
    )
    return dataclasses.replace(plan, config=plan.config.model_copy(update={"evaluation": evaluation}))


def changed_code(folder: Path, record: dict[str, Any], label: str, seed: int) -> list[str]:
    """Foreign plug-ins of a run whose code has changed since it was trained; empty where it never was.

    Args:
        folder: the benchmark's.
        record: the run's as it would be trained now.
        label, seed: the run.
    """
    record = plain(record)
    for path in sorted((folder / names.RUNS).glob(f"{label}-s{seed}-*/{names.RUN}")):
        try:
            old = read_json(path)["record"]
            same = {**old, "code": record["code"]} == record
        except (UserError, KeyError, TypeError):
            continue
        if same and old["code"] != record["code"]:
            changed = set(old["code"].items()) ^ set(record["code"].items())
            return sorted({name for name, _ in changed})
    return []
