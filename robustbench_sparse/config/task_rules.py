"""What a config may ask of a task: its networks, defenses and attacks have to be made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from robustbench_sparse.config.plan import AttackPlan, RunPlan
from robustbench_sparse.config.schema import BenchmarkConfig
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.tasks import Task

Path = tuple[str | int, ...]
Problem = tuple[Path, str]  # a key path, and what is wrong there


def check_task(
    task: Task,
    config: BenchmarkConfig,
    attacks: Sequence[AttackPlan],
    runs: Sequence[RunPlan],
    error: Callable[[Path, str], UserError],
) -> None:
    """Look for a part of a config that does not fit its task.

    Args:
        task: what all networks of the benchmark are for.
        config: the file.
        attacks, runs: built from it.
        error: makes an error of a key path and a problem.

    Raises:
        UserError: for the first one.
    """
    for path, problem in (
        *_networks(task, config, runs),
        *_attacks(task, config, attacks),
        *_rest(task, config),
    ):
        raise error(path, problem)
    for run in runs:
        for path, problem in _training(task, run):
            raise error(("runs", run.label, *path), problem)


def _networks(task: Task, config: BenchmarkConfig, runs: Sequence[RunPlan]) -> Iterator[Problem]:
    for run in runs:
        path: Path = ("runs", run.label, "model") if config.runs[run.label].model is not None else ("model",)
        if task.key not in run.model.tasks:
            yield path, f"expected a network for the task {task.key}, got {run.model_name}"


def _attacks(task: Task, config: BenchmarkConfig, attacks: Sequence[AttackPlan]) -> Iterator[Problem]:
    if task.key != "classify" and config.suite is not None:
        yield ("suite",), f"its attacks are on classifiers: expected none with the task {task.key}"
    for planned in attacks:
        if task.key not in planned.attack.tasks:
            yield (
                ("attacks", planned.label),
                f"expected an attack for the task {task.key}, got {planned.name}",
            )


def _rest(task: Task, config: BenchmarkConfig) -> Iterator[Problem]:
    if task.key != "classify" and config.shifts:
        yield ("shifts",), f"classifiers are judged on them: expected none with the task {task.key}"
    if task.key != "classify" and config.evaluation.certificate != "off":
        problem = f"its checks are of classifiers: expected off with the task {task.key}"
        yield ("evaluation", "certificate"), problem


def _training(task: Task, run: RunPlan) -> Iterator[Problem]:
    for number, defense in enumerate(run.defenses):
        if task.key not in defense.build().tasks:
            yield ("defenses", number), f"expected a defense for the task {task.key}, got {defense.name}"
    for stage in run.stages:
        if task.key == "classify":
            continue
        if stage.selection == "adversarial":
            yield ("train", "selection"), f"expected best or last with the task {task.key}, got 'adversarial'"
        if getattr(stage.schedule, "signal", "") == "val_accuracy":
            yield ("train", "schedule", "signal"), f"expected train_loss with the task {task.key}"
        if not task.redraws and (stage.config.augment.crop or stage.config.augment.flip):
            yield ("train", "augment"), "expected none where the training images' noise is drawn once"
