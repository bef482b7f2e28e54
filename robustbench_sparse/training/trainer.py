"""The one training loop: stages of epochs of steps, with the defenses' hooks around each of them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses.base import Defense, Step, unrecorded_statistics
from robustbench_sparse.config.optimizers import Schedule
from robustbench_sparse.config.plan import RunPlan, StagePlan
from robustbench_sparse.config.schema import StageConfig
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork, FastTraining, Precision
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import save_weights
from robustbench_sparse.foundation.progress import Progress, Task
from robustbench_sparse.foundation.streams import Streams, derive
from robustbench_sparse.models.build import build_network, has_weights, on_device
from robustbench_sparse.runs import names
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.sparsity.counting import count_layers, shares_of
from robustbench_sparse.training.batch_norm import synchronise
from robustbench_sparse.training.checkpoint import Checkpoint, Moment
from robustbench_sparse.training.logs.base import Log, Logs
from robustbench_sparse.training.minibatches import Minibatches
from robustbench_sparse.training.parallel import Ranks, Several
from robustbench_sparse.training.validation import Validation, keep

_LOOK_EVERY_S = 1.0


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Trainer:
    """Trains one run, and goes on where an earlier sitting stopped.

    Args:
        run: what to train.
        data: images on the device.
        threat: the benchmark's threat.
        seed: the run's seed.
        checkpoint: file that holds the state after the last whole epoch.
        show: where progress goes.
        label: the bars' title.
        ranks: the processes that train together; this one alone by default. All of them get the same arguments, and the
            first one writes.
        log: is told of every epoch.
    """

    def __init__(
        self,
        run: RunPlan,
        data: PreparedData,
        threat: Threat,
        seed: int,
        checkpoint: Path,
        show: Progress,
        label: str = "",
        ranks: Ranks | None = None,
        log: Log | None = None,
    ) -> None:
        self.log = log or Logs()
        self.run, self.data, self.threat, self.show = run, data, threat, show
        self.task, self.ranks = run.task, ranks or Ranks()
        self.label = label or run.label
        self.streams = Streams(seed)
        self.defenses = [d.build() for d in run.defenses]
        # Two defenses of one kind have streams of their own; adding another kind shifts neither.
        names = [d.name for d in run.defenses]
        self._stream_names = [f"defense/{n}/{names[:i].count(n)}" for i, n in enumerate(names)]
        classes = self.task.classes(data.classes)
        model = build_network(run.model, self.defenses, data.channels, data.size, classes, seed)
        self.model = on_device(model, data.device)
        if isinstance(self.ranks, Several):
            synchronise(self.model, self.ranks)
        self.trained = Trained()
        self.checkpoint = Checkpoint(checkpoint, self.model, self.defenses, self.streams, self.trained)
        self.minibatches = Minibatches(self.task, data, self.streams, self.ranks)
        self.validation = Validation(data, threat, self.streams, self.task)
        self._config: StageConfig  # of the stage at work
        self._forward: FastTraining
        self._sample: Tensor  # a minibatch to compile for, set with a stage
        self._fast = dict[Precision, FastNetwork]()
        self._validated: FastNetwork | None = None
        self.s = Step(self.model, None, threat, self.streams.get("data"), data.images, fresh=self._fresh)
        self.s.objective = self._objective
        self.s.part = self.ranks.part
        self.s.tell = lambda line: self.show.note(f"{self.label}: {line}")

    # One epoch after another ---------------------------------------------------------------------------

    def train(self) -> Trained:
        """Train every stage to its end; returns the chosen weights, or why training diverged."""
        if not has_weights(self.model):
            self.trained.weights = self.trained.last_weights = self.model.state_dict()
            return self.trained  # a network without weights, such as the identity, is what it is
        reached = self.checkpoint.read()
        first = reached.stage if reached else 0
        for number in range(first, len(self.run.stages)):
            try:
                self._stage(number, self.run.stages[number], reached if number == first else None)
            except Diverged as e:
                self.trained.diverged = str(e)
                break
        self.trained.asked = self._asked()
        return self.trained

    def _asked(self) -> list[dict[str, Any]]:
        pairs = (
            (plan.name, d.asked(self.model)) for plan, d in zip(self.run.defenses, self.defenses, strict=True)
        )
        return [{"defense": name, **asdict(asked)} for name, asked in pairs if asked is not None]

    def _stage(self, number: int, stage: StagePlan, reached: Moment | None) -> None:
        s, config = self.s, stage.config
        steps = self.data.steps_per_epoch(config.batch_size)
        s.stage, s.epoch, s.epochs, s.steps_per_epoch, s.optimizer = number, 0, config.epochs, steps, None
        for defense in self._acting():
            defense.begin(s)
        optimizer = stage.optimizer.build(self.model)
        schedule = stage.schedule.build(optimizer, config.epochs, steps)
        s.optimizer = optimizer
        start = 0
        if reached:
            self.checkpoint.restore(optimizer, schedule, self.data.device)
            s.step, start = reached.step, reached.epoch + 1
        else:
            self.trained.selected = {}
        self._make_quick(stage)
        if not reached and 0 in config.snapshots:
            self._keep_snapshot(0, self.deployed())
        several = len(self.run.stages) > 1
        title = f"{self.label} train" + (f" {number + 1}/{len(self.run.stages)}" if several else "")
        images = self.data.count("train")
        task = self.show.start(title, config.epochs * images, "images", start * images)
        try:
            for epoch in range(start, config.epochs):
                began = time.perf_counter()
                s.epoch = epoch
                row = self._epoch(stage, optimizer, schedule, task)
                self.trained.seconds += time.perf_counter() - began
                self.trained.history.append(row)
                self.ranks.align(self.model, self.defenses)
                if self.ranks.leads:
                    self.checkpoint.write(Moment(stage=number, epoch=epoch, step=s.step), optimizer, schedule)
                    self.log.epoch(self.trained.history)
        finally:
            task.close()

    def _epoch(
        self, stage: StagePlan, optimizer: torch.optim.Optimizer, schedule: Schedule, task: Task
    ) -> dict[str, float]:
        s, config = self.s, stage.config
        augment = Augment(**config.augment.model_dump())
        lr = optimizer.param_groups[0]["lr"]
        # Layers like dropout draw from torch's global generator: its own stream, renewed every epoch.
        torch.manual_seed(derive(self.streams.seed, f"layers/{s.stage}/{s.epoch}{self.ranks.stream}"))
        self.model.train()
        loss_sum = torch.zeros((), device=self.data.device)
        measured = torch.zeros((), device=self.data.device)
        seen, looked = 0.0, time.perf_counter()
        for s.minibatch, (s.x, s.y) in enumerate(self.minibatches.epoch(augment, config.batch_size)):
            y = s.y
            with self.ranks.together():
                loss, outputs = self._step(optimizer)
            schedule.after_step()
            share = self.ranks.share
            loss_sum += loss * (len(y) * share)
            measured += self.task.measure(outputs, y).sum() * share
            seen += len(y) * share
            info = ""
            if time.perf_counter() - looked > _LOOK_EVERY_S:  # reading a loss waits for the device: rarely
                looked = time.perf_counter()
                info = f"epoch {s.epoch + 1}/{s.epochs} loss {self._so_far(loss_sum) / seen:.4f}"
            task.advance(self.ranks.of, info)
        total, right, seen = self.ranks.sums(loss_sum, measured, seen)
        losses = {"lr": lr, "train_loss": self._finite(total) / seen}
        return self._end_of_epoch(stage, schedule, losses, right / seen)

    def _end_of_epoch(
        self, stage: StagePlan, schedule: Schedule, row: dict[str, float], trained: float
    ) -> dict[str, float]:
        """Validate the deployed network, keep it where it is chosen, let the defenses see; the epoch's record.

        ``trained`` is what the task measures, on the epoch's minibatches.
        """
        s, config, task = self.s, stage.config, self.task
        deployed = self.deployed()
        validated = self.ranks.told(lambda: self.validation.measured(deployed))
        if task.percent:
            s.train_accuracy, s.val_accuracy = trained, validated
        schedule.after_epoch(row["train_loss"], task.score(validated))
        layers = count_layers(deployed)
        s.sparsity = shares_of(layers)
        sparsity = {k: math.nan if v is None else v for k, v in s.sparsity.items()}
        when = {"stage": s.stage, "epoch": s.epoch}
        row = {
            **when,
            **row,
            f"train_{task.measured}": task.shown(trained),
            f"val_{task.measured}": task.shown(validated),
            **sparsity,
            "l1_norm": math.fsum(layer["l1_norm"] for layer in layers),
        }
        score = task.score(validated)
        s.val_adversarial_accuracy = math.nan
        if stage.selection == "adversarial" or any(d.needs_robust_validation for d in self._acting()):
            s.val_adversarial_accuracy = self.ranks.told(
                lambda: self.validation.adversarial_accuracy(deployed, self._stand_in(deployed))
            )
            row["val_adversarial_accuracy"] = 100 * s.val_adversarial_accuracy
        if stage.selection == "adversarial":
            score = s.val_adversarial_accuracy
        facts = {
            **when,
            f"val_{task.measured}": validated,
            f"train_{task.measured}": task.shown(trained),
            **sparsity,
        }
        keep(self.trained, stage.selection, config.select_after, score, facts, deployed)
        if s.epoch + 1 in config.snapshots:
            self._keep_snapshot(s.epoch + 1, deployed)
        self.trained.layers += [
            {**when, **{k: v for k, v in layer.items() if k not in ("kind", "shape")}} for layer in layers
        ]
        with torch.no_grad():
            for name, defense in self._named_acting():
                row |= {f"{name}.{key}": float(value) for key, value in defense.end_epoch(s).items()}
        return row

    def _keep_snapshot(self, passed: int, network: nn.Module) -> None:
        """Write a network beside the checkpoint; it counts once training has ended."""
        if not self.ranks.leads:
            return
        name = names.snapshot(self.s.stage, passed)
        save_weights(self.checkpoint.path.parent / name, network.state_dict())
        self.trained.snapshots.append(name)

    def _step(self, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
        s = self.s
        s.lr = float(optimizer.param_groups[0]["lr"])
        with self._precision():
            for defense in self._acting():
                s.x = defense.perturb(s)
        for defense in self._acting():
            defense.before_forward(s)
        s.outputs = self._forward(s.x)
        loss = self._loss(s.outputs)
        optimizer.zero_grad()
        self.ranks.weighed(loss).backward()  # type: ignore[no-untyped-call]
        self.ranks.sum_gradients(self.model)
        s.outputs = outputs = s.outputs.detach()
        for defense in self._acting():
            defense.after_backward(s)
        for defense in self._acting():
            defense.before_step(s)
        optimizer.step()
        s.step += 1
        with torch.no_grad():
            for defense in self._acting():
                defense.after_step(s)
        s.outputs = None
        # With the penalty in it: one that is not finite has to stop the run too.
        return loss.detach().float(), outputs

    def _loss(self, outputs: Tensor, repeatable: bool = False) -> Tensor:
        """What the step descends, given the outputs on its images; on request without what cannot be asked twice."""
        s = self.s
        replaced = [own for defense in self._acting() if (own := defense.criterion(s)) is not None]
        loss = replaced[0] if replaced else self.task.loss(outputs, s.y)
        for defense in self._acting():
            penalty = defense.penalty(s) if defense.repeatable or not repeatable else None
            if penalty is not None:
                loss = loss + penalty
        return loss

    def _objective(self) -> Tensor:
        """``Step.objective``: the network runs in training mode, and keeps no record of it."""
        s, generator = self.s, self.s.generator
        try:
            with unrecorded_statistics(self.model):
                s.outputs = self._forward(s.x)
                return self.ranks.weighed(self._loss(s.outputs, repeatable=True))
        finally:
            s.outputs, s.generator = None, generator

    # The parts ------------------------------------------------------------------------------------------

    def _named_acting(self) -> Iterator[tuple[str, Defense]]:
        """The defenses acting in this stage, each with its own stream in ``s.generator`` while it runs."""
        for plan, defense, stream in zip(self.run.defenses, self.defenses, self._stream_names, strict=True):
            if plan.acts_in(self.s.stage):
                self.s.generator = self.streams.get(stream)
                yield plan.name, defense

    def _acting(self) -> Iterator[Defense]:
        return (defense for _, defense in self._named_acting())

    def _make_quick(self, stage: StagePlan) -> None:
        """Passes in the stage's precision, compiled where it says so."""
        config = stage.config
        self._config = config
        size = min(config.batch_size, self.data.count("train"))
        x = self.data.gather("train", torch.arange(size))[0]
        self._forward = FastTraining(self.model, precision=config.precision, compile=config.compile == "on")
        self._forward.warm_up(x)
        self._check_compiled(self._forward.note)
        self._sample = x  # compiled code is made for batches of this size, though it works for all
        self._fast, self._validated = {}, None
        self.s.forward = self._forward
        self.s.fast, self.s.quick = self._current if self._is_quick else None, self._current

    def _check_compiled(self, note: str) -> None:
        """UserError where compiling was given up: eager in its place would be another training under the same id."""
        if note:
            raise UserError(f"runs.{self.run.label}.train.compile: {note}; set it to off")

    @property
    def _is_quick(self) -> bool:
        return self._config.precision != "fp32" or self._config.compile == "on"

    def _precision(self) -> AbstractContextManager[Any]:
        if self._config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.data.device.type, dtype=torch.bfloat16)

    def _current(self, precision: Precision | None = None) -> nn.Module:
        """The network as it is now, quick to attack; in the stage's precision if None."""
        precision = precision or self._config.precision
        if precision not in self._fast:
            self._fast[precision] = self._quick(self.model, precision)
        return self._fast[precision].refresh()

    def _stand_in(self, deployed: nn.Module) -> FastNetwork | None:
        """What validation attacks in a deployed network's place; None for the network itself."""
        if not self._is_quick:
            return None
        if self._validated is None:
            self._validated = self._quick(deployed, self._config.precision)
        return self._validated.refresh(deployed)

    def _quick(self, model: nn.Module, precision: Precision) -> FastNetwork:
        fast = FastNetwork(model, precision=precision, compile=self._config.compile == "on")
        fast.warm_up(self._sample)
        self._check_compiled(fast.note)
        return fast

    def deployed(self) -> nn.Module:
        """A copy of the network as it would be judged now, in eval mode."""
        model = self.model
        with torch.no_grad():
            for defense in self._acting():
                model = defense.deploy(model)
            if model is self.model:
                model = copy.deepcopy(model)
        model.eval()
        return model

    def _fresh(self, generator: torch.Generator) -> nn.Module:
        """Another network of this run's, before any training."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        data, classes = self.data, self.task.classes(self.data.classes)
        return build_network(self.run.model, self.defenses, data.channels, data.size, classes, seed)

    def _so_far(self, loss_sum: Tensor) -> float:
        """For the eye; where several train, only the sum over all of them may end the training, for all of them."""
        return self._finite(loss_sum.item()) if self.ranks.count == 1 else loss_sum.item()

    def _finite(self, value: float) -> float:
        if not math.isfinite(value):
            raise Diverged(
                f"the training loss became {value} in stage {self.s.stage}, epoch {self.s.epoch}: "
                "lower the learning rate or the penalty"
            )
        return value
