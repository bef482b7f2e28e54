"""The settings that a run was trained with, by the key paths of its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.runs.folder import RunFolder

_OMITTED = ("code", "fingerprint", "format")  # of the record: no settings


def settings_of_run(run: RunFolder) -> dict[str, Any]:
    """Every setting, defaults filled in, by its key path.

    As in a config, but that a defense stands under its name: ``model.depth``, ``defenses.rgsm.lam``,
    ``train.optimizer.lr``; where there are several stages, ``train.stages.0.optimizer.lr``.

    Raises:
        UserError: a network that was not trained here, or a damaged record.
    """
    record = run.facts.get("record")
    if not isinstance(record, dict) or not record:
        raise UserError(f"{run.path}: of a network that was not trained here: it has no settings")
    try:
        stages, defenses = record["stages"], record["defenses"]
        named = [d["name"] for d in defenses]
        tree = {k: v for k, v in record.items() if k not in ("stages", "defenses", *_OMITTED)}
        tree["train"] = stages[0] if len(stages) == 1 else {"stages": dict(enumerate(stages))}
        tree["defenses"] = {
            name if named.count(name) == 1 else f"{name}{named[: i + 1].count(name)}": d
            for i, (name, d) in enumerate(zip(named, defenses, strict=True))
        }
        return dict(_flat(tree))
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{run.path}: damaged: its record has not the settings of a training") from None


def _flat(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def find_setting(asked: str, runs: Sequence[Mapping[str, Any]], option: str) -> str:
    """The one key path that is asked for, or that ends in it.

    Args:
        asked: a key path, or its end, such as ``lam``.
        runs: the settings of each run.
        option: of the command, for errors.

    Raises:
        UserError: there is no such setting, or several end alike.
    """
    known = list(dict.fromkeys(path for settings in runs for path in settings))
    if asked in known:
        return asked
    ending = [path for path in known if path.endswith(f".{asked}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"{option} {asked}: expected one of {', '.join(ending)}")
    numbers = [path for path in known if any(_is_number(settings.get(path)) for settings in runs)]
    like = near(asked, dict.fromkeys([*known, *(path.rpartition(".")[2] for path in numbers)]))
    raise UserError(
        f"{option} {asked}: no setting of these runs{like}; numbers among them: {', '.join(numbers)}"
    )


def number_at(settings: Mapping[str, Any], path: str, run: RunFolder, option: str) -> float:
    """A setting's value; UserError where the run has none, or one that is no number."""
    value = settings.get(path)
    if not _is_number(value):
        got = f"got {value!r}" if path in settings else "it has no such setting"
        raise UserError(f"{option} {path}: expected a number in {run.path.name}, {got}")
    return float(settings[path])


def differing(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells groups of runs apart: settings whose values are not the same in all, those of all but one left out.

    Returns:
        A text per group, such as ``model.depth = 20``; names of plug-ins alone where those differ already.
    """
    paths = [
        p for p in dict.fromkeys(p for g in groups for p in g) if len({repr(g.get(p)) for g in groups}) > 1
    ]
    plugins = [p for p in paths if p.rpartition(".")[2] == "name"]
    for chosen in (plugins, [*plugins, *(p for p in paths if p not in plugins)]):
        texts = [
            ", ".join(f"{_short(p)} {g[p]}".removeprefix("name ") for p in chosen if p in g) for g in groups
        ]
        if len(set(texts)) == len(texts):
            return texts
    return texts


def _short(path: str) -> str:
    parts = path.split(".")
    return parts[-1] if parts[-1] == "name" else ".".join(parts[-2:])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
