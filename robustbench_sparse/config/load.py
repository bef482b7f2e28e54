"""Reading a benchmark file, with everything checked before anything trains."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from attacks import ATTACKS
from attacks.base import Attack
from attacks.transfer import NOISE_OFF, Transfer
from defenses import DEFENSES
from defenses.base import Defense, overrides
from robustbench_sparse.config import dense_twins, yaml_reader
from robustbench_sparse.config.columns import SPARSITIES, TRAIN, is_reserved, restored_columns
from robustbench_sparse.config.optimizers import OPTIMIZERS, SCHEDULES, OptimizerSpec, ScheduleSpec
from robustbench_sparse.config.plan import AttackPlan, DefensePlan, Plan, RunPlan, ShiftPlan, StagePlan
from robustbench_sparse.config.plugins import SettingError, beside, build, expectation, import_object
from robustbench_sparse.config.schema import (
    MOST_NAME,
    BenchmarkConfig,
    Entry,
    RunConfig,
    StageConfig,
    ThreatConfig,
)
from robustbench_sparse.config.suites import SUITES
from robustbench_sparse.config.task_rules import check_task
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.base import DatasetSpec
from robustbench_sparse.foundation.errors import UserError, near, one_line, shown
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.shifts import SHIFTS, Shift
from robustbench_sparse.tasks import TASKS, Task

METRIC_COLUMNS = ("clean", "worst", *SPARSITIES, *TRAIN)


class _Where:
    """Turns a key path into ``file:line: key.path``."""

    def __init__(
        self, name: str, lines: Mapping[yaml_reader.KeyPath, int], changed: Sequence[str] = ()
    ) -> None:
        self.name, self.lines, self.changed = name, lines, changed

    def error(self, path: Sequence[str | int], problem: str) -> UserError:
        key, dotted = tuple(path), ".".join(map(str, path))
        above = any(change.startswith(f"{dotted}.") for change in self.changed) and key not in self.lines
        if any(f"{dotted}.".startswith(f"{change}.") for change in self.changed) or (above and self.lines):
            return UserError(f"--set {dotted}: {problem}")
        first = 1 if self.lines else None
        line = next((self.lines[key[:i]] for i in range(len(key), 0, -1) if key[:i] in self.lines), first)
        at = f"{self.name}:{line}" if line else self.name
        return UserError(f"{at}: {dotted}: {problem}" if path else f"{at}: {problem}")

    def build(self, table: Any, entry: Entry, kind: str, base: Any, path: Sequence[str | int]) -> Any:
        try:
            return build(table, entry, kind, base)
        except SettingError as e:
            raise self.error((*path, *e.path), e.problem) from None

    def model(self, cls: Any, value: Any, path: Sequence[str | int]) -> Any:
        if not isinstance(value, dict):
            raise self.error(path, f"expected a mapping, got {shown(value)}")
        try:
            return cls.model_validate(value)
        except ValidationError as e:
            raise self._schema_error(cls, e.errors(), path) from None

    def _schema_error(self, cls: Any, errors: Any, path: Sequence[str | int]) -> UserError:
        # A union reports one error per branch: the deepest path is the one that says something.
        first = max(errors, key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
        loc = tuple(p for p in first["loc"] if p not in ("str", "dict[str,any]", "TwinConfig"))
        if first["type"] == "extra_forbidden":
            known = _fields_at(cls, loc[:-1])
            return self.error(
                (*path, *loc), f"unknown key{near(str(loc[-1]), known)}; there are: {', '.join(known)}"
            )
        if first["type"] == "missing":
            return self.error((*path, *loc[:-1]), f"the key {loc[-1]!r} is missing")
        problem = one_line(first["msg"]).removeprefix("Value error, ")
        if first["type"] != "value_error":
            problem = expectation(first)
        kinds = {e["type"] for e in errors if e["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]}
        if {"string_type", "dict_type"} <= kinds:
            problem = "expected a name or a mapping"
        return self.error((*path, *loc), f"{problem}, got {shown(first['input'])}")


def _fields_at(cls: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """Field names of the (nested) model that a pydantic error location points into."""
    here: Any = cls
    for part in loc:
        fields = getattr(here, "model_fields", {})
        if part in fields:
            hint = fields[part].annotation
            args = [a for a in getattr(hint, "__args__", ()) if isinstance(a, type)]
            here = next((a for a in [hint, *args] if isinstance(a, type) and issubclass(a, BaseModel)), here)
    return list(getattr(here, "model_fields", {}))


def merge(base: Any, change: Any) -> Any:
    """Deep merge of mappings; an entry that names another plug-in replaces the whole entry."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if "name" in change and change["name"] != base.get("name"):
        return change
    return {**base, **{k: merge(base[k], v) if k in base else v for k, v in change.items()}}


def apply_set(raw: Any, assignment: str) -> Any:
    """A raw config with one ``key.path=value`` applied; the argument stays as it is.

    List items are addressed by number; a plug-in given by its bare name becomes an entry with settings; where
    a key has dots itself, the longest key that exists is meant.
    """
    path, equals, text = assignment.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {assignment}: expected key.path=value")
    return _with(raw, parts, yaml_reader.scalar(text), path)


def _with(here: Any, parts: list[str], value: Any, path: str) -> Any:
    if not parts:
        return value
    if isinstance(here, list):
        if not parts[0].isdecimal() or int(parts[0]) >= len(here):
            raise UserError(f"--set {path}: expected a number below {len(here)}, got {parts[0]!r}")
        i = int(parts[0])
        return [*here[:i], _with(here[i], parts[1:], value, path), *here[i + 1 :]]
    if here is None or isinstance(here, str):
        here = {} if here is None else {"name": here}
    if not isinstance(here, dict):
        raise UserError(f"--set {path}: expected a mapping above {'.'.join(parts)!r}, got {shown(here)}")
    lengths = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in here] or [1]
    key, rest = ".".join(parts[: lengths[0]]), parts[lengths[0] :]
    return {**here, key: _with(here.get(key), rest, value, path)}


def load(path: Path, changes: Iterable[str] = ()) -> Plan:
    """Read and check a benchmark file.

    Args:
        path: the YAML file.
        changes: ``key.path=value`` assignments applied before checking.

    Raises:
        UserError: one line with file, line, key path, what was expected and what was got.
    """
    raw, lines = yaml_reader.read(path)
    with beside(path.parent):
        return resolve(raw, name=str(path), lines=lines, changes=changes, folder=path.parent)


def resolve(
    raw: Any,
    name: str = "config",
    lines: Mapping[yaml_reader.KeyPath, int] | None = None,
    changes: Iterable[str] = (),
    folder: Path = Path(),
    schema: type[BenchmarkConfig] = BenchmarkConfig,
) -> Plan:
    """Check a raw config (nested mappings as YAML gives them) and build every plug-in; see ``load``.

    Args:
        raw: the mappings.
        name: what errors call the file.
        lines: the line of each key path, where there is a file.
        changes: as for ``load``.
        folder: of the file; relative paths in it start here.
        schema: ``NetworkConfig`` for a network that is only judged.
    """
    changes = list(changes)
    where = _Where(name, lines or {}, [change.partition("=")[0] for change in changes])
    if not isinstance(raw, dict):
        raise where.error((), f"expected a mapping of keys, got {shown(raw)}")
    for change in changes:
        raw = apply_set(raw, change)
    config: BenchmarkConfig = where.model(schema, raw, ())
    data = _named(config.data)
    dataset = where.build(DATASETS, data, "dataset", DatasetSpec, ("data",))
    base: Any = Task  # abstract, which mypy does not take for a type[T]
    task: Task = where.build(TASKS, _named(config.task), "task", base, ("task",))
    attacks = [_attack(where, label, entry, config) for label, entry in _attacks(config).items()]
    shifts = [_shift(where, label, entry, config) for label, entry in config.shifts.items()]
    runs = [_row(where, label, config, task) for label in config.runs]
    for number, name in enumerate(config.evaluation.checks):
        try:  # imported here, where plug-ins beside the file are found; what it is, the certificate looks at
            import_object(name)
        except UserError as e:
            raise where.error(("evaluation", "checks", number), str(e)) from None
    check_task(task, config, attacks, runs, where.error)
    for planned in attacks:
        if isinstance(planned.attack, Transfer):
            _check_source(where, planned.label, planned.attack.source, [run.label for run in runs])
    published = _published(where, config, folder, task)
    return Plan(config, data["name"], dataset, attacks, runs, published, task, shifts)


def _named(entry: str | Entry) -> Entry:
    return {"name": entry} if isinstance(entry, str) else dict(entry)


def _attacks(config: BenchmarkConfig) -> dict[str, str | Entry]:
    """The suite's attacks, then the file's own; one of the file's takes the place of the suite's of its label."""
    return {**(SUITES[config.suite] if config.suite else {}), **config.attacks}


def _check_label(where: _Where, label: str, path: Sequence[str | int]) -> None:
    if is_reserved(label) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", label) or len(label) > MOST_NAME:
        expected = f"a label of at most {MOST_NAME} letters, digits, - and _ that is no column's name"
        raise where.error(path, f"expected {expected}")


def _shift(where: _Where, label: str, entry: str | Entry, config: BenchmarkConfig) -> ShiftPlan:
    path = ("shifts", label)
    _check_label(where, label, path)
    if label in _attacks(config):
        raise where.error(path, "expected a label that no attack has")
    entry = _named(entry)
    shift: Shift = where.build(SHIFTS, entry, "shift", Shift, path)
    return ShiftPlan(label, entry["name"], shift)


def _attack(where: _Where, label: str, entry: str | Entry, config: BenchmarkConfig) -> AttackPlan:
    path = ("attacks", label) if label in config.attacks else ("suite", label)
    _check_label(where, label, path)
    entry = _named(entry)
    threat_config = config.threat
    if "threat" in entry:
        raw = entry.pop("threat")
        base = config.threat.model_dump()
        if isinstance(raw, dict) and raw.get("norm", base["norm"]) != base["norm"]:
            del base["eps"]  # a radius means nothing in another norm
        threat_config = where.model(ThreatConfig, merge(base, raw), (*path, "threat"))
    threat = threat_config.threat()
    attack: Attack = where.build(ATTACKS, entry, "attack", Attack, path)
    try:
        attack.check_threat(threat)
    except ValueError as e:
        raise where.error(path, one_line(e)) from None
    if attack.target == "given":
        raise where.error((*path, "target"), "expected a rule that chooses the class, got 'given'")
    return AttackPlan(label, entry["name"], attack, threat)


def _check_source(where: _Where, label: str, source: str, runs: Sequence[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # such as a name that no file can have
        if source in (NOISE_OFF, *runs) or Path(source).is_dir():
            return
    known = (NOISE_OFF, *runs)
    raise where.error(
        ("attacks", label, "source"),
        f"expected a run's folder or one of {', '.join(known)}, got {shown(source)}{near(source, known)}",
    )


def _row(where: _Where, label: str, config: BenchmarkConfig, task: Task) -> RunPlan:
    """A row as the file has it, or the dense twin of another one."""
    own = config.runs[label]
    if own.dense_twin is None:
        return _run(where, label, own, config, task)
    twin = dense_twins.asked(label, config, where.error)
    other = config.runs[twin.of]
    sparse = _run(where, twin.of, other, config, task)
    dense_twins.check_row(label, sparse, where.error)
    kept = [d for d, plan in zip(other.defenses, sparse.defenses, strict=True) if not plan.build().sparsifies]
    train = merge(other.train, own.train)
    run = _run(where, label, RunConfig(model=other.model, defenses=kept, train=train), config, task)
    optimizer = _named(config.train.get("optimizer", "sgd"))
    build = functools.partial(where.build, OPTIMIZERS, optimizer, "optimizer", OptimizerSpec)
    stages = dense_twins.dense_stages(run, optimizer, lambda: build(("train", "optimizer")), where.error)
    return dataclasses.replace(run, stages=stages, twin=twin)


def _run(where: _Where, label: str, run: RunConfig, config: BenchmarkConfig, task: Task) -> RunPlan:
    path: tuple[str, ...] = ("runs", label)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", label) or len(label) > MOST_NAME:
        raise where.error(
            path, f"expected a label of at most {MOST_NAME} letters, digits, and any of - _ + ."
        )
    if run.model is None and config.model is None:
        raise where.error(path, "the key 'model' is missing, here and at the top")
    entry = merge(_named(config.model or {}), _named(run.model or {}))
    model_path = (*path, "model") if run.model is not None else ("model",)
    model = where.build(MODELS, entry, "model", ModelSpec, model_path)

    merged = merge(config.train, run.train)
    train_path = (*path, "train") if run.train else ("train",)
    changes = merged.pop("stages", [{}]) if isinstance(merged, dict) else [{}]
    if not isinstance(changes, list) or not changes:
        raise where.error((*train_path, "stages"), f"expected a list of stages, got {shown(changes)}")
    stages = []
    for i, change in enumerate(changes):
        at: tuple[str | int, ...] = (*train_path, "stages", i) if changes != [{}] else train_path
        stage = where.model(StageConfig, merge(merged, change), at)
        if stage.select_after >= stage.epochs and stage.selection != "last":
            raise where.error(
                (*at, "select_after"), f"expected less than epochs = {stage.epochs}, got {stage.select_after}"
            )
        if max(stage.snapshots, default=0) > stage.epochs:
            raise where.error(
                (*at, "snapshots"), f"expected at most epochs = {stage.epochs}, got {max(stage.snapshots)}"
            )
        optimizer = where.build(OPTIMIZERS, stage.optimizer, "optimizer", OptimizerSpec, (*at, "optimizer"))
        schedule = where.build(SCHEDULES, stage.schedule, "schedule", ScheduleSpec, (*at, "schedule"))
        if config.validation == 0 and getattr(schedule, "signal", "") == "val_accuracy":
            raise where.error((*at, "schedule", "signal"), "'val_accuracy' needs validation > 0, got 0")
        stages.append(StagePlan(stage, optimizer, schedule))

    defenses = [
        _defense(where, _named(d), (*path, "defenses", i), len(stages)) for i, d in enumerate(run.defenses)
    ]
    for number in range(len(stages)):
        _check_together(where, [d for d in defenses if d.acts_in(number)], (*path, "defenses"))
    stages = [_with_selection(stage, number, defenses) for number, stage in enumerate(stages)]
    chosen = next((s.selection for s in stages if s.selection != "last"), None)
    if config.validation == 0 and chosen:
        raise where.error(
            ("validation",), f"selection '{chosen}' needs a validation part: expected validation > 0, got 0"
        )
    return RunPlan(label, entry["name"], model, defenses, stages, task)


def _check_together(where: _Where, acting: Sequence[DefensePlan], path: Sequence[str | int]) -> None:
    """What the defenses of one stage cannot do beside each other."""
    built = [(plan.name, plan.build()) for plan in acting]
    for hook, what in (("perturb", "the images"), ("criterion", "the task's loss")):
        names = [name for name, defense in built if overrides(defense, hook)]
        if len(names) > 1:
            raise where.error(path, f"at most one defense may replace {what}, got {names}")
    makers = [name for name, defense in built if defense.sparsifies]
    owner = next((name for name, defense in built if defense.owns_mask), None)
    if owner is not None and len(makers) > 1:
        raise where.error(path, f"{owner} alone may make zeros in its stages, got {makers}")
    attacked = any(defense.passes > 0 for _, defense in built)
    for name, defense in built:
        if defense.needs_attack and not attacked:
            problem = f"{name} needs a defense beside it that attacks the training images"
            raise where.error(path, f"{problem}, got {[name for name, _ in built]}")


def _with_selection(stage: StagePlan, number: int, defenses: Sequence[DefensePlan]) -> StagePlan:
    """The stage with the default filled in: a network trained on attacked images is chosen by attacked images."""
    if stage.config.selection is not None:
        return stage
    attacked = any(d.acts_in(number) and d.build().passes > 0 for d in defenses)
    config = stage.config.model_copy(update={"selection": "adversarial" if attacked else "best"})
    return dataclasses.replace(stage, config=config)


def _defense(where: _Where, entry: Entry, path: tuple[str | int, ...], stages: int) -> DefensePlan:
    chosen = entry.pop("stages", None)
    if chosen is not None:
        fits = isinstance(chosen, list) and all(
            isinstance(c, int) and not isinstance(c, bool) and 0 <= c < stages for c in chosen
        )
        if not fits:
            raise where.error(
                (*path, "stages"), f"expected a list of numbers below {stages}, got {shown(chosen)}"
            )
        chosen = tuple(chosen)
    defense = where.build(DEFENSES, entry, "defense", Defense, path)
    if chosen is not None and overrides(defense, "wrap"):
        raise where.error((*path, "stages"), f"{entry['name']} builds the network: it acts in every stage")
    return DefensePlan(entry["name"], {k: v for k, v in entry.items() if k != "name"}, chosen)


def _published(
    where: _Where, config: BenchmarkConfig, folder: Path, task: Task
) -> dict[str, dict[str, float]]:
    from robustbench_sparse.config.published import read_published

    given, stored = config.published.values, {}
    if config.published.file is not None:
        try:
            stored = read_published(folder / config.published.file)
        except UserError as e:
            raise where.error(("published", "file"), str(e)) from None
    columns = {*METRIC_COLUMNS, *_attacks(config), *config.shifts}
    if not task.percent:
        columns = set(restored_columns(_attacks(config))) | {*SPARSITIES}
    values: dict[str, dict[str, float]] = {}
    for run in dict.fromkeys((*stored, *given)):
        path = ("published", "values", run) if run in given else ("published", "file", run)
        if run not in config.runs:
            raise where.error(path, f"no run of this name{near(run, config.runs)}")
        values[run] = {**stored.get(run, {}), **given.get(run, {})}
        for column in values[run]:
            if column not in columns:
                raise where.error((*path, column), f"no column of this name{near(column, columns)}")
    return values
