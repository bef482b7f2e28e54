"""How a stored network was built: from the record of its run, without the data set it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import from_file
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json, read_keys
from robustbench_sparse.models.build import build_network
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals
from robustbench_sparse.runs.variants import MARK


def has_recipe(folder: Path | None) -> bool:
    """Whether a run's folder says how its network was built; that of a foreign network does not."""
    if folder is None or not (folder / names.RUN).is_file():
        return False
    return bool(read_keys(folder / names.RUN, ("record",))["record"])


def stored_plan(folder: Path) -> Plan:
    """The plan of a benchmark with this run alone, as ``run.json`` records it.

    Raises:
        UserError: the record is damaged, or of other plug-ins than there are.
    """
    path = folder / names.RUN
    Seals(folder).check(path.name)
    return plan_of(read_json(path), path)


def plan_of(facts: Mapping[str, Any], path: Path) -> Plan:
    """The plan that the content of a ``run.json`` records; ``path`` is the file it was read from.

    Nothing is imported for it but what ``plugins.trust`` allows.
    """
    try:
        if facts["record"] == {}:
            raise UserError(
                f"{path}: of a network that was judged, not trained here: name the factory that makes it in its place"
            )
        record = facts["record"]
        defenses = [{k: v for k, v in d.items() if (k, v) != ("stages", None)} for d in record["defenses"]]
        raw = {
            "name": str(facts["benchmark"]).partition(MARK)[0],
            "data": record["data"],
            "validation": record["validation"],
            "train_limit": record["train_limit"],
            "threat": record["threat"],
            **({"task": record["task"]} if "task" in record else {}),
            "train": {"stages": [_known(stage) for stage in record["stages"]]},
            "runs": {facts["run"]: {"model": record["model"], "defenses": defenses}},
        }
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)}") from None
    with from_file():
        return resolve(raw, name=str(path))


def _known(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's record as the schema knows it: once, precision and compilation could be left to a measurement."""
    fixed = {"precision": "fp32", "compile": "off"}
    return {**stage, **{k: v for k, v in fixed.items() if stage.get(k) == "auto"}}


def architecture(folder: Path, channels: int, size: int, classes: int) -> nn.Module:
    """The network of a run, with fresh weights, in eval mode on the CPU.

    Args:
        folder: the run's, see ``has_recipe``.
        channels, size, classes: of the data set, as in ``models.build.build_network``.

    Raises:
        UserError: as ``stored_plan``, or for images that the network does not fit.
    """
    path = folder / names.RUN
    return network_of(read_json(path), path, channels, size, classes)


def network_of(facts: Mapping[str, Any], path: Path, channels: int, size: int, classes: int) -> nn.Module:
    """As ``architecture``, from the content of a ``run.json``, read from ``path``."""
    run = plan_of(facts, path).runs[0]
    try:
        defenses = [d.build() for d in run.defenses]
        seed, given = int(facts["seed"]), run.task.classes(classes)
        return build_network(run.model, defenses, channels, size, given, seed).eval()
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: {one_line(e)}") from None
