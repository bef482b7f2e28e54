"""A benchmark at work: each of its rows trained, judged with its relatives, and certified."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.base import is_stochastic
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.devices import cpu_threads
from robustbench_sparse.foundation.errors import UserError, contained
from robustbench_sparse.foundation.fences import remove
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.locks import row_locked
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.judging.relatives import Relative, Relatives, parent_of, twin_of
from robustbench_sparse.models.build import build_network, on_device
from robustbench_sparse.runs import names, variants
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import manifest_of
from robustbench_sparse.runs.record import locate
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.sparsity.counting import count_macs
from robustbench_sparse.training.helpers import train
from robustbench_sparse.training.logs import log_of
from robustbench_sparse.training.preflight import most_memory
from robustbench_sparse.verdict import help_judging, judge_network, judge_restorer

RANDOM_PASSES = 10  # averaged over, about, wherever a fixed network takes one
# Multiply-accumulates of a pass from which a row takes all threads, one at a time: so much work is divided well, and
# several such rows would only take the memory from each other.
LARGE = 100e6
TRAINING, JUDGING = "training", "judging"  # what a process may hold of a row
_LOOK_S = 0.5  # between two looks for shards of a row that nobody is at


@dataclass(frozen=True)
class Workspace:
    """What every row of a benchmark shares.

    Attributes:
        folder: the benchmark's, held by this process or the one that started it.
        plan: the checked config.
        chosen: the runs that are worked on.
        dataset, data: as loaded, and as cut and moved.
        show: where progress goes.
        log: kinds of logs that trainings write, see ``training.logs``; no number depends on them.
    """

    folder: Path
    plan: Plan
    chosen: Sequence[RunPlan]
    dataset: Dataset
    data: PreparedData
    show: Progress
    log: tuple[str, ...] = ()

    def rows(self) -> list[tuple[RunPlan, int]]:
        """The runs to work on with their seeds, in order."""
        return [(run, seed) for seed in self.plan.config.seeds for run in self.chosen]

    def longest_first(self) -> list[tuple[RunPlan, int]]:
        """The same rows, those first that are likely to take longest: so that the last ones fill up what is left."""
        work = {run.label: self._work(run) for run in self.chosen}
        return sorted(self.rows(), key=lambda row: work[row[0].label], reverse=True)

    def _work(self, run: RunPlan) -> float:
        """A guess: the multiplications of a pass, times the passes of training and, of a random network, of judging."""
        defenses = [d.build() for d in run.defenses]
        passes = sum(s.config.epochs for s in run.stages) * (3 + 2 * sum(d.passes for d in defenses))
        macs, random = self._pass[run.label]
        return macs * passes * (RANDOM_PASSES if random else 1)

    @cached_property
    def _pass(self) -> dict[str, tuple[float, bool]]:
        """Of every run the multiplications of a pass of one image, and whether its network is random."""
        found: dict[str, tuple[float, bool]] = {}
        for run in self.plan.runs:
            defenses, data = [d.build() for d in run.defenses], self.data
            classes = run.task.classes(data.classes)
            model = build_network(run.model, defenses, data.channels, data.size, classes, seed=0)
            found[run.label] = count_macs(model, data.channels, data.size), is_stochastic(model)
        return found

    @cached_property
    def threads(self) -> int:
        """Threads that each row takes, for training and for judging.

        On how many threads a sum is formed is part of how it is rounded. So the number follows from the config and the
        machine alone, whichever rows are worked on, and however many at a time: the config's ``threads``, or
        the processors that its ``resources`` ask for; else the machine's, divided among the rows of the table, or all
        of them for each row where a network is large.
        """
        config = self.plan.config
        if config.threads is not None or config.resources.cpus is not None:
            return config.threads or _whole(config.resources.cpus)
        every = torch.get_num_threads()
        if self.data.device.type != "cpu" or max(macs for macs, _ in self._pass.values()) >= LARGE:
            return every
        return max(1, every // (len(self.plan.runs) * len(self.plan.config.seeds)))

    def threads_of(self, run: RunPlan) -> int:
        """Threads that a row takes, which may ask for processors of its own."""
        own = self.plan.config.resources_of(run.label).cpus
        return self.threads if self.plan.config.threads is not None or own is None else _whole(own)

    @property
    def multiplications(self) -> float:
        """Of the trainings of all rows worked on, about; judging takes some more."""
        return self.data.count("train") * sum(self._work(run) for run, _ in self.rows())

    @cached_property
    def memory(self) -> float:
        """Bytes that a row takes, about: the images, read and cut, and a step of the largest network's training."""
        each = 2.0 * self.data.bytes + most_memory(self.chosen, self.data)
        return each * max(run.devices for run in self.chosen)

    def describe(self) -> None:
        """Write what the leaderboard is made by."""
        rows = [
            {"run_id": self.place(run, seed).run_id, "run": run.label, "seed": seed}
            for run in self.plan.runs
            for seed in self.plan.config.seeds
        ]
        write_json(self.folder / names.BENCHMARK, manifest_of(self.plan, self.dataset, rows))

    def run(self, run: RunPlan, seed: int, *, wait: bool = True) -> bool:
        """Train and judge a row, as far as that is not done yet.

        Args:
            run, seed: the row.
            wait: for another process that works on this row.

        Returns:
            Whether the row is done; False where another process works on it, and ``wait`` is off.
        """
        place = self.place(run, seed)
        with cpu_threads(self.threads_of(run)):
            if not self._train(run, place, wait=wait):
                return False
            if wait:
                self._help(run, place)
            with self._alone(place, JUDGING, wait=wait) as mine:
                if mine:
                    place.tidy()
                    self._judge(run, place)
                return mine

    def place(self, run: RunPlan, seed: int) -> RunFolder:
        """The row's folder."""
        return locate(self.folder, self.plan, run, seed, self.dataset)

    @cached_property
    def _by_label(self) -> dict[str, RunPlan]:
        return {run.label: run for run in self.plan.runs}

    def _title(self, place: RunFolder) -> str:
        return f"{place.label} s{place.seed}" if len(self.plan.config.seeds) > 1 else place.label

    # Training -------------------------------------------------------------------------------------------

    def _train(self, run: RunPlan, place: RunFolder, *, wait: bool) -> bool:
        """Train a row unless it is; False where another process does, and ``wait`` is off."""
        with self._alone(place, TRAINING, wait=wait) as mine:
            if not mine:
                return False
            if place.training() is not None:
                # Of a process that was killed once training was stored.
                remove(place.checkpoint)
                if place.lacks_snapshots():
                    why = (
                        f"trained before its snapshots were asked for: delete {place.path} to train it again"
                    )
                    self.show.note(f"{self._title(place)}: {why}")
            else:
                place.tidy()  # not where it is trained: another process may be judging it
                if not self._adopted(place):
                    self._train_anew(run, place)
            return True

    def _alone(self, place: RunFolder, what: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold a row's training or judging, as ``row_locked``.

        Whoever judges a row may wait for the training of another one; whoever trains waits for no judging.
        """

        def say() -> None:
            self.show.note(f"{self._title(place)}: waiting for another process, which works on it")

        return row_locked(self.folder, f"{place.run_id}.{what}", wait=wait, waits=say, changes=place.path)

    def _adopted(self, place: RunFolder) -> bool:
        device, title = self.data.device, self._title(place)
        if place.adopt(variants.siblings(self.folder), device):
            self.show.note(f"{title}: trained already, in another table of this benchmark")
            return True
        if place.adopt_last(device):
            self.show.note(f"{title}: trained already, as a row that keeps another epoch")
            return True
        return False

    def _train_anew(self, run: RunPlan, place: RunFolder) -> None:
        title = self._title(place)
        for name in variants.changed_code(self.folder, place.facts["record"], run.label, place.seed):
            self.show.note(f"{title}: the code of {name} has changed since it was trained: trained anew")
        if run.twin is not None:
            weights = f"{run.twin.weights} weights for the {run.twin.left} that it has left"
            self.show.note(f"{title}: dense twin of {run.twin.of}: {weights}")
        place.prepare(self.data.device)
        threat = self.plan.threat
        log = log_of(self.log, self.folder / names.LOGS, place.run_id)
        with closing(log), contained(f"runs.{title}: training"):
            trained = train(run, self.data, threat, place.seed, place.checkpoint, self.show, title, log)
        place.store(trained)

    # Judging --------------------------------------------------------------------------------------------

    def _judge(self, run: RunPlan, place: RunFolder) -> None:
        training = place.training()
        assert training is not None
        if training["status"] != "complete":
            self.show.note(f"{run.label}: {training['status']}: {training['reason']}")
            return
        kin = self._relatives(run, place.seed)
        model = place.network(**images_of(self.dataset))
        counts = place.counts() or place.count(model, self.data.channels, self.data.size)
        if counts.get("refused"):
            self.show.note(f"{run.label}: refused: {counts['refused']}")
            return
        model = on_device(model, self.data.device)
        identity = self._identity(place, training)
        what = model, place, self.plan, self.data, self.show
        if self.plan.task.key == "restore":
            judge_restorer(*what, identity=identity, title=self._title(place))
        else:
            judge_network(*what, identity=identity, title=self._title(place), kin=kin)

    def _help(self, run: RunPlan, place: RunFolder) -> None:
        """Make shards of a row's attacks for as long as another process judges it."""
        training = place.complete()
        if self.plan.config.evaluation.shards == 1 or self.plan.task.key != "classify" or training is None:
            return
        model: nn.Module | None = None
        while True:
            with self._alone(place, JUDGING, wait=False) as mine:
                if mine:
                    return
            model = model or on_device(place.network(**images_of(self.dataset)), self.data.device)
            helped = help_judging(
                model,
                place,
                self.plan,
                self.data,
                self.show,
                identity=self._identity(place, training),
                title=f"{self._title(place)} shards",
                kin=Relatives(find=lambda source: self._find(source, place.seed)),
            )
            if not helped:
                time.sleep(_LOOK_S)

    def _identity(self, place: RunFolder, training: Mapping[str, Any]) -> str:
        """Names the network that is judged: the run's id names the code that builds it from its weights."""
        return f"{training['weights_sha256']}/{self.dataset.fingerprint}/{place.run_id}"

    def _relatives(self, run: RunPlan, seed: int) -> Relatives:
        """The row's relatives. One that is worked on anyway is trained first; another takes part if it is there."""
        return Relatives(
            twin=self._known(twin_of(self.plan, run), seed),
            undefended=not run.defenses and not run.sparsifies,
            parent=self._known(parent_of(self.plan, run), seed),
            find=lambda source: self._find(source, seed),
            seeds=len(self.plan.config.seeds),
        )

    def _known(self, label: str | None, seed: int) -> Relative | None:
        if label is None or self.plan.config.evaluation.certificate == "off":
            return None
        run = self._by_label[label]
        place = self.place(run, seed)
        to_come = place.training() is None and run in self.chosen
        return self._find(label, seed) if to_come or place.complete() else None

    def _find(self, source: str, seed: int) -> Relative:
        """A row by its label, trained first if it has to be, or a run by its folder."""
        run = self._by_label.get(source)
        place = RunFolder.at(Path(source)) if run is None else self.place(run, seed)
        if run is not None:
            self._train(run, place, wait=True)
        training = place.complete()
        if training is None:
            raise UserError(f"runs.{source}: not trained to the end, so nothing can be made on it")
        place.check_weights()
        return Relative(
            source,
            lambda: on_device(place.network(**images_of(self.dataset)), self.data.device),
            training["weights_sha256"],
        )


def _whole(cpus: float | None) -> int:
    """Threads for so many processors."""
    return max(1, int(cpus or 1))
