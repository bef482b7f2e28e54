"""A checked benchmark: every plug-in built, every default filled in, nothing left that could fail by a typo."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from attacks.base import Attack, Threat
from defenses import DEFENSES
from defenses.base import Defense
from robustbench_sparse.config.optimizers import OptimizerSpec, ScheduleSpec
from robustbench_sparse.config.plugins import build, regularisers_in, settings_of
from robustbench_sparse.config.schema import BenchmarkConfig, Entry, Selection, StageConfig
from robustbench_sparse.data.base import Dataset, DatasetSpec
from robustbench_sparse.data.loading import prepare_data
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.shifts import Shift
from robustbench_sparse.tasks import Classify, Task


@dataclass(frozen=True)
class AttackPlan:
    """A labelled attack with its threat.

    Attributes:
        label: its column in the leaderboard.
        name: its key in a config.
        attack, threat: built.
        source: what names the weights that adversarials are made on, where those are another network's.
    """

    label: str
    name: str
    attack: Attack
    threat: Threat
    source: str = ""

    def record(self) -> Entry:
        """Everything that determines the attack's numbers, as plain values."""
        return {"name": self.name, **settings_of(self.attack), "threat": settings_of(self.threat)}


@dataclass(frozen=True)
class ShiftPlan:
    """A labelled shift.

    Attributes:
        label: its column in the leaderboard.
        name: its key in a config.
        shift: built.
    """

    label: str
    name: str
    shift: Shift

    def record(self) -> Entry:
        """Everything that determines the shift's numbers, as plain values."""
        return {"name": self.name, **settings_of(self.shift)}


@dataclass(frozen=True)
class StagePlan:
    """A stage with its optimizer and schedule."""

    config: StageConfig
    optimizer: OptimizerSpec
    schedule: ScheduleSpec

    @property
    def selection(self) -> Selection:
        """Which epoch is kept."""
        assert self.config.selection is not None, "filled in when the config was read"
        return self.config.selection

    def record(self) -> Entry:
        """Everything that determines the stage's numbers, as plain values."""
        return {
            **self.config.model_dump(
                exclude={"snapshots", *(["devices"] if self.config.devices == 1 else [])}
            ),
            "optimizer": {"name": self.config.optimizer["name"], **settings_of(self.optimizer)},
            "schedule": {"name": self.config.schedule["name"], **settings_of(self.schedule)},
        }


@dataclass(frozen=True)
class DefensePlan:
    """A defense's entry, from which every run builds an instance of its own.

    Attributes:
        name: its key in a config.
        settings: as given there.
        stages: the stages in which its training hooks run; None means all.
    """

    name: str
    settings: Entry
    stages: tuple[int, ...] | None

    def build(self) -> Defense:
        """A fresh instance."""
        return build(DEFENSES, {"name": self.name, **self.settings}, "defense", Defense)

    def acts_in(self, stage: int) -> bool:
        """Whether its training hooks run in this stage."""
        return self.stages is None or stage in self.stages

    def record(self) -> Entry:
        """Everything that determines its numbers, as plain values."""
        stages = list(self.stages) if self.stages is not None else None
        return {"name": self.name, **settings_of(self.build()), "stages": stages}


@dataclass(frozen=True, kw_only=True)
class DenseTwin:
    """Of which row another one is the dense twin, and what came of it.

    Attributes:
        of: label of the row whose sparse network has as many weights left.
        sparsity: its percentage of zero weights as the file says it; None: what its methods are asked for.
        left: weights that it has left; 0 until the images are known, as are the others.
        weights: those of the twin.
    """

    of: str
    sparsity: float | None = None
    left: int = 0
    weights: int = 0


@dataclass(frozen=True)
class RunPlan:
    """One row: label, network, defenses, stages, and what the network is for.

    Of a dense twin (``twin``) the network is that of the other row until ``dense_twins.with_widths`` has thinned it.
    """

    label: str
    model_name: str
    model: ModelSpec
    defenses: list[DefensePlan]
    stages: list[StagePlan]
    task: Task = field(default_factory=Classify)
    twin: DenseTwin | None = None

    @property
    def sparsifies(self) -> bool:
        """Whether a defense or an optimizer makes the network sparse."""
        return any(d.build().sparsifies for d in self.defenses) or any(
            s.optimizer.sparsifies for s in self.stages
        )

    @property
    def devices(self) -> int:
        """Processes that train the network."""
        return max((stage.config.devices for stage in self.stages), default=1)

    def snapshots(self) -> list[tuple[int, int]]:
        """Of each network that is kept on the way: its stage, and the epochs passed in it."""
        return [(i, passed) for i, stage in enumerate(self.stages) for passed in stage.config.snapshots]

    def parts(self) -> list[object]:
        """All plug-ins that a training is made of."""
        stages = [part for stage in self.stages for part in (stage.optimizer, stage.schedule)]
        plugins = [*(d.build() for d in self.defenses), *stages]
        return [self.model, *plugins, *(cls for p in plugins for cls in regularisers_in(settings_of(p)))]

    def record(self) -> Entry:
        """Everything that determines the training's numbers but data, seed and code, as plain values."""
        return {
            "model": {"name": self.model_name, **settings_of(self.model)},
            "defenses": [d.record() for d in self.defenses],
            "stages": [s.record() for s in self.stages],
            **task_record(self.task),
        }

    def table_record(self) -> Entry:
        """The same as far as the file says it: it does not say how wide a dense twin is."""
        if self.twin is None:
            return self.record()
        return {**self.record(), "model": {"dense_twin": self.twin.of, "sparsity": self.twin.sparsity}}


def task_record(task: Task) -> Entry:
    """A task with its settings; nothing for classification, the only task there once was."""
    return {} if task == Classify() else {"task": {"name": task.key, **settings_of(task)}}


@dataclass(frozen=True)
class Plan:
    """The benchmark. ``published`` holds values by run and column."""

    config: BenchmarkConfig
    dataset_name: str
    dataset: DatasetSpec
    attacks: list[AttackPlan]
    runs: list[RunPlan]
    published: dict[str, dict[str, float]]
    task: Task = field(default_factory=Classify)
    shifts: list[ShiftPlan] = field(default_factory=list)

    def prepare(self, dataset: Dataset, device: torch.device) -> PreparedData:
        """The data set cut and moved as the config says; UserError where it is too small for that."""
        c = self.config
        return prepare_data(
            dataset,
            device,
            validation=c.validation,
            train_limit=c.train_limit,
            test_limit=c.evaluation.limit,
        )

    @property
    def threat(self) -> Threat:
        """The benchmark's threat, which attacks and defenses take over unless they say otherwise."""
        return self.config.threat.threat()
