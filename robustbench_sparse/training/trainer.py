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
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import IFGSM
from attacks.base import GeneratorNoise, SampleRandom, Threat, noise_from
from defenses.base import Defense, Step
from robustbench_sparse.config.optimizers import Schedule
from robustbench_sparse.config.plan import RunPlan, StagePlan
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.autotune import Speed, for_training, recorded
from robustbench_sparse.engine.fast import FastNetwork, FastTraining
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically
from robustbench_sparse.foundation.progress import Show, Task
from robustbench_sparse.foundation.streams import Streams, derive
from robustbench_sparse.models.build import build_network, on_device
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.sparsity.counting import count_layers, count_macs, shares_of

VALIDATION_ATTACK = IFGSM(steps=10, keep="last")
_EVALUATION_BATCH = 512
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
    """

    def __init__(
        self,
        run: RunPlan,
        data: PreparedData,
        threat: Threat,
        seed: int,
        checkpoint: Path,
        show: Show,
        label: str = "",
    ) -> None:
        self.run, self.data, self.threat, self.show = run, data, threat, show
        self.checkpoint, self.label = checkpoint, label or run.label
        self.streams = Streams(seed)
        self.defenses = [d.build() for d in run.defenses]
        # Two defenses of one kind have streams of their own; adding another kind shifts neither.
        names = [d.name for d in run.defenses]
        self._stream_names = [f"defense/{n}/{names[:i].count(n)}" for i, n in enumerate(names)]
        model = build_network(run.model, self.defenses, data.channels, data.size, data.classes, seed)
        self.model = on_device(model, data.device)
        self.trained = Trained()
        self.speed = Speed()
        self._forward = FastTraining(self.model, precision="fp32", compile=False)
        self._sample: Tensor  # a minibatch to compile for, set with a stage's speed
        self._fast: FastNetwork | None = None
        self._validated: FastNetwork | None = None
        self.s = Step(self.model, None, threat, self.streams.get("data"), data.images)

    # One epoch after another ---------------------------------------------------------------------------

    def train(self) -> Trained:
        """Train every stage to its end; returns the chosen weights, or why training diverged."""
        resumed = self._read_checkpoint()
        first = int(resumed["stage"]) if resumed else 0
        for number in range(first, len(self.run.stages)):
            stage = self.run.stages[number]
            state = resumed if resumed and number == first else None
            try:
                self._stage(number, stage, state)
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

    def _stage(self, number: int, stage: StagePlan, resumed: dict[str, Any] | None) -> None:
        s, config = self.s, stage.config
        steps = self.data.steps_per_epoch(config.batch_size)
        s.stage, s.epoch, s.epochs, s.steps_per_epoch, s.optimizer = number, 0, config.epochs, steps, None
        for defense in self._acting():
            defense.begin(s)
        optimizer = stage.optimiser.build(self.model)
        schedule = stage.schedule.build(optimizer, config.epochs, steps)
        s.optimizer = optimizer
        start = 0
        if resumed:
            self._restore(resumed, optimizer, schedule)
            start = int(resumed["epoch"]) + 1
        else:
            self.trained.selected = {}
        self._choose_speed(number, stage)
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
                self._write_checkpoint(number, epoch, optimizer, schedule)
        finally:
            task.close()

    def _epoch(
        self, stage: StagePlan, optimizer: torch.optim.Optimizer, schedule: Schedule, task: Task
    ) -> dict[str, float]:
        s, config = self.s, stage.config
        augment = Augment(**config.augment.model_dump())
        lr = optimizer.param_groups[0]["lr"]
        # Layers like dropout draw from torch's global generator: its own stream, renewed every epoch.
        torch.manual_seed(derive(self.streams.seed, f"layers/{s.stage}/{s.epoch}"))
        self.model.train()
        loss_sum = torch.zeros((), device=self.data.device)
        right = torch.zeros((), device=self.data.device)
        seen, looked = 0, time.perf_counter()
        stream = self.streams.get("data")
        for x, y in self.data.batches(stream, config.batch_size):
            s.x, s.y = augment(x, self.streams.get("augment")), y
            loss, logits = self._step(optimizer)
            schedule.after_step()
            loss_sum += loss * len(y)
            right += (logits.argmax(1) == y).sum()
            seen += len(y)
            info = ""
            if time.perf_counter() - looked > _LOOK_EVERY_S:  # reading a loss waits for the device: rarely
                looked = time.perf_counter()
                info = f"epoch {s.epoch + 1}/{s.epochs} loss {self._finite(loss_sum) / seen:.4f}"
            task.advance(len(y), info)
        loss_mean = self._finite(loss_sum) / seen
        s.train_accuracy = right.item() / seen
        deployed = self.deployed()
        s.val_accuracy = self._accuracy(deployed, None) if self.data.count("val") else math.nan
        schedule.after_epoch(loss_mean, s.val_accuracy)
        layers = count_layers(deployed)
        s.sparsity = shares_of(layers)
        row: dict[str, float] = {
            "stage": s.stage,
            "epoch": s.epoch,
            "lr": lr,
            "train_loss": loss_mean,
            "train_accuracy": 100 * s.train_accuracy,
            "val_accuracy": 100 * s.val_accuracy,
            **{k: math.nan if v is None else v for k, v in s.sparsity.items()},
            "l1_norm": math.fsum(layer["l1_norm"] for layer in layers),
        }
        score = s.val_accuracy
        if config.selection == "adversarial":
            score = self._accuracy(deployed, self.threat)
            row["val_adversarial_accuracy"] = 100 * score
        self._select(config.selection, config.select_after, score, deployed)
        self.trained.layers += [
            {
                "stage": s.stage,
                "epoch": s.epoch,
                **{k: v for k, v in layer.items() if k not in ("kind", "shape")},
            }
            for layer in layers
        ]
        with torch.no_grad():
            for name, defense in self._named_acting():
                row |= {f"{name}.{key}": float(value) for key, value in defense.end_epoch(s).items()}
        return row

    def _step(self, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
        s = self.s
        s.lr = float(optimizer.param_groups[0]["lr"])
        with self._precision():
            for defense in self._acting():
                s.x = defense.perturb(s)
        logits = self._forward(s.x)
        loss = F.cross_entropy(logits, s.y)
        for defense in self._acting():
            penalty = defense.penalty(s)
            if penalty is not None:
                loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for defense in self._acting():
            defense.before_step(s)
        optimizer.step()
        s.step += 1
        with torch.no_grad():
            for defense in self._acting():
                defense.after_step(s)
        # With the penalty in it: one that is not finite has to stop the run too.
        return loss.detach().float(), logits.detach()

    # The parts ------------------------------------------------------------------------------------------

    def _named_acting(self) -> Iterator[tuple[str, Defense]]:
        """The defenses acting in this stage, each with its own stream in ``s.generator`` while it runs."""
        for plan, defense, stream in zip(self.run.defenses, self.defenses, self._stream_names, strict=True):
            if plan.acts_in(self.s.stage):
                self.s.generator = self.streams.get(stream)
                yield plan.name, defense

    def _acting(self) -> Iterator[Defense]:
        return (defense for _, defense in self._named_acting())

    def _precision(self) -> AbstractContextManager[Any]:
        if self.speed.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.data.device.type, dtype=torch.bfloat16)

    def _choose_speed(self, number: int, stage: StagePlan) -> None:
        """Precision and compilation of a stage: as its folder records them, else as asked for or measured."""
        data, config = self.data, stage.config
        size = min(config.batch_size, data.count("train"))
        x = data.gather("train", torch.arange(size))[0]
        passes = sum(d.passes for d in self._acting())

        def choose() -> Speed:
            images = config.epochs * data.count("train")
            macs = count_macs(self.model, data.channels, data.size)
            work = (
                images * macs * (3 + 2 * passes)
            )  # backward costs twice the forward pass, half with fixed weights
            return for_training(
                self.model, x, work, passes, precision=config.precision, compile=config.compile
            )

        self.speed = recorded(self.checkpoint.parent / "speed.json", f"training {number}", choose)
        precision, compile = self.speed.precision, self.speed.compile
        self._forward = FastTraining(self.model, precision=precision, compile=compile)
        self._forward.warm_up(x)
        self._sample = x  # compiled code is made for batches of this size, though it works for all
        self._fast = self._validated = None
        plain = precision == "fp32" and not compile
        self.s.fast = None if plain else self._current

    def _current(self) -> nn.Module:
        """The network as it is now, quick to attack."""
        if self._fast is None:
            self._fast = self._quick(self.model)
        return self._fast.refresh()

    def _quick(self, model: nn.Module) -> FastNetwork:
        fast = FastNetwork(model, precision=self.speed.precision, compile=self.speed.compile)
        fast.warm_up(self._sample)
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

    def _accuracy(self, model: nn.Module, threat: Threat | None) -> float:
        """Share of the validation part classified right, clean or under the validation attack."""
        noise = self.streams.get("validation")
        right = 0
        attacked = model
        if threat is not None and self.s.fast is not None:
            if self._validated is None:
                self._validated = self._quick(model)
            attacked = self._validated.refresh(model)
        for x, y, _ in self.data.ordered("val", _EVALUATION_BATCH):
            if threat is not None:
                x = VALIDATION_ATTACK(attacked, x, y, threat, SampleRandom.spawn(noise, len(y)))
            with torch.no_grad(), noise_from(model, GeneratorNoise(noise)):
                right += int((model(x).argmax(1) == y).sum())
        return right / self.data.count("val")

    def _select(self, rule: str, after: int, score: float, deployed: nn.Module) -> None:
        best = self.trained.selected.get("score", -math.inf)
        if rule == "last" or (self.s.epoch >= after and score > best):
            self.trained.selected = {
                "stage": self.s.stage,
                "epoch": self.s.epoch,
                "score": score,
                "val_accuracy": self.s.val_accuracy,
                "train_accuracy": 100 * self.s.train_accuracy,
                **{k: math.nan if v is None else v for k, v in self.s.sparsity.items()},
            }
            self.trained.weights = {k: v.detach().cpu().clone() for k, v in deployed.state_dict().items()}

    def _finite(self, loss_sum: Tensor) -> float:
        value = loss_sum.item()
        if not math.isfinite(value):
            raise Diverged(
                f"the training loss became {value} in stage {self.s.stage}, epoch {self.s.epoch}: "
                "lower the learning rate or the penalty"
            )
        return value

    # Checkpoints ----------------------------------------------------------------------------------------

    def _write_checkpoint(
        self, stage: int, epoch: int, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> None:
        t = self.trained
        state = {
            "stage": stage,
            "epoch": epoch,
            "step": self.s.step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "defenses": [d.state_dict() for d in self.defenses],
            "streams": self.streams.state_dict(),
            "weights": t.weights,
            "history": t.history,
            "layers": t.layers,
            "selected": t.selected,
            "seconds": t.seconds,
        }
        write_atomically(self.checkpoint, lambda f: torch.save(state, f))

    def _read_checkpoint(self) -> dict[str, Any] | None:
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as e:
            raise UserError(
                f"{self.checkpoint}: damaged, cannot go on from here ({one_line(e)[:80]}); "
                "delete it to train this run again"
            ) from None
        return state

    def _restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        try:
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            for defense, memory in zip(self.defenses, state["defenses"], strict=True):
                defense.load_state_dict(_to(memory, self.data.device))
        except (KeyError, ValueError, RuntimeError) as e:
            raise UserError(f"{self.checkpoint}: does not fit this run: {one_line(e)[:200]}") from None
        self.streams.load_state_dict(state["streams"])
        self.s.step = int(state["step"])
        self.trained = Trained(
            weights=state["weights"],
            history=state["history"],
            layers=state["layers"],
            selected=state["selected"],
            seconds=state["seconds"],
        )


def _to(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested dictionaries, lists and tuples to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
