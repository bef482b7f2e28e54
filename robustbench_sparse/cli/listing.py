"""What a config can name, as ``robustbench-sparse list`` prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustbench_sparse.config import plugins, yaml_reader
from robustbench_sparse.foundation import shipped
from robustbench_sparse.foundation.errors import UserError, near, one_line

# Kind -> its table of contents. Imported when asked for: some of them load slowly.
TABLES = {
    "attacks": "attacks:ATTACKS",
    "defenses": "defenses:DEFENSES",
    "regularisers": "defenses:REGULARISERS",
    "models": "robustbench_sparse.models:MODELS",
    "tasks": "robustbench_sparse.tasks:TASKS",
    "shifts": "robustbench_sparse.shifts:SHIFTS",
    "datasets": "robustbench_sparse.data:DATASETS",
    "optimizers": "robustbench_sparse.config.optimizers:OPTIMIZERS",
    "schedules": "robustbench_sparse.config.optimizers:SCHEDULES",
}


def lines_of(kind: str, configs: Path = Path("configs")) -> list[str]:
    """Name, one line and settings of everything of a kind; every suite, network of the zoo, or file below ``configs``.

    Raises:
        UserError: when there is no such kind, or no benchmark file.
    """
    if kind == "configs":
        return _configs(configs)
    if kind == "suites":
        return _suites()
    if kind == "zoo":
        return _zoo()
    if kind not in TABLES:
        known = [*TABLES, "suites", "zoo", "configs"]
        raise UserError(
            f"list: nothing of the kind {kind!r}{near(kind, known)}; there are: {', '.join(known)}"
        )
    lines = []
    for name, cls in plugins.import_object(TABLES[kind]).items():
        lines.append(f"{name}: {plugins.describe(cls)}")
        for setting, default in plugins.settings_with_defaults(cls).items():
            lines.append(f"    {setting}: {'required' if default is ... else _plain(default)}")
    return lines


def _suites() -> list[str]:
    """Each suite's attacks with the settings that are not their defaults, and what it takes."""
    from robustbench_sparse.config.suites import PURPOSE, SUITES, attacks_of, cost_of

    lines = []
    for suite, entries in SUITES.items():
        lines.append(f"{suite}: {PURPOSE[suite]}")
        for label, entry in entries.items():
            settings = [f"{key}: {_plain(value)}" for key, value in entry.items() if key != "name"]
            lines.append(f"    {label}: {', '.join([entry['name'], *settings])}")
        gradients, queries = cost_of(attacks_of(suite).values())
        lines.append(
            f"    at most {gradients:,} gradient passes and {queries:,} queries per image".replace(",", " ")
        )
    lines.append("On a network that is random at inference each gradient pass is taken eot times.")
    return lines


def _zoo() -> list[str]:
    """Each network's name with what was measured of it."""
    from robustbench_sparse.zoo import list_models

    lines = []
    for row in list_models().to_dict("records"):
        rates = ", ".join(
            f"{rate} {row[rate]:.1f} % [{row[f'{rate}_lo']:.1f}, {row[f'{rate}_hi']:.1f}]"
            for rate in ("clean", "robust")
        )
        lines.append(f"zoo:{row['name']}: {rates} at {row['threat']} {row['eps']:.4g}; {row['verdict']}")
        size = f"{row['nonzero_parameters']} of {row['parameters']} parameters are not zero"
        fewer = "" if row["robust_images"] == row["images"] else f" ({row['robust_images']} for robust)"
        lines.append(
            f"    {row['dataset']}, {row['images']} images{fewer}; {size}; protocol {row['protocol']}"
        )
    return lines


def _configs(folder: Path) -> list[str]:
    paths = sorted(folder.glob("**/*.yaml"))
    ours = None if paths else shipped.folder("configs")  # `run` takes them by name
    if ours is not None:
        paths = sorted(ours.glob("*.yaml"))
    if not paths:
        raise UserError(f"{folder}: no benchmark files (*.yaml) here")
    lines = []
    for path in paths:
        raw, _ = yaml_reader.read(path)
        facts = raw if isinstance(raw, dict) else {}
        lines.append(f"{path if ours is None else path.stem}: {facts.get('name', '(no name)')}")
        lines += [f"    {one_line(facts['source'])}"] if facts.get("source") else []
    return lines


def _plain(value: Any) -> str:
    """A default as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(_plain(v) for v in value)}]"
    return str(value)
