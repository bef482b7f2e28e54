"""Training steps as our trainer takes them, so that what a method adds to one can be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from benchmarks.bench import Bench
from defenses.base import Defense, Precision, Step
from robustbench_sparse.engine.fast import FastNetwork, FastTraining
from robustbench_sparse.models.build import on_device

LR = 0.01
Build = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The papers' optimizer."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)


class Stepper:
    """A training step: channels-last, a defense's hooks around it.

    Args:
        bench: holds the network that every step starts from.
        x, y: the minibatch of every step.
        defense: whose hooks run; none for a plain step.
        build: makes the optimizer.
        precision: of the passes; in ``bf16`` they are compiled, as our side is.
    """

    def __init__(
        self,
        bench: Bench,
        x: Tensor,
        y: Tensor,
        defense: Defense | None = None,
        build: Build = sgd,
        precision: Precision = "bf16",
    ) -> None:
        self.defense, self.x, self.precision = defense, x, precision
        self.compile = bench.sizes.compile and precision == "bf16"
        self.fast = dict[Precision, FastNetwork]()
        self.model = on_device(copy.deepcopy(bench.network("natural")), bench.device).train()
        self.optimizer = build(self.model)
        self.forward = FastTraining(self.model, precision=precision, compile=self.compile)
        self.forward.warm_up(x)
        self.s = Step(self.model, self.optimizer, Threat(), torch.Generator(), no_images, x=x, y=y, lr=LR)
        self.s.forward, self.s.quick = self.forward, self._current
        if defense is not None:
            defense.begin(self.s)

    def step(self) -> None:
        """One step on the batch."""
        s = self.s
        s.x = self.x
        if self.defense is not None:
            s.x = self.defense.perturb(s)
        loss = F.cross_entropy(self.forward(s.x), s.y)
        if self.defense is not None:
            penalty = self.defense.penalty(s)
            loss = loss if penalty is None else loss + penalty
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.defense is not None:
            self.defense.before_step(s)
        self.optimizer.step()
        if self.defense is not None:
            with torch.no_grad():
                self.defense.after_step(s)

    def _current(self, precision: Precision | None = None) -> nn.Module:
        """The network as it is now, quick to attack."""
        precision = precision or self.precision
        if precision not in self.fast:
            self.fast[precision] = FastNetwork(self.model, precision=precision, compile=self.compile)
            self.fast[precision].warm_up(self.x)
        return self.fast[precision].refresh()

    def deployed(self) -> nn.Module:
        """The network as it would be judged now."""
        return self.model if self.defense is None else self.defense.deploy(self.model)


def minibatch(bench: Bench) -> tuple[Tensor, Tensor]:
    """One minibatch of training images, channels-last, and its labels."""
    data = bench.train_part(bench.sizes.train_batch)
    x, y = data.gather("train", torch.arange(data.count("train")))
    return x.contiguous(memory_format=torch.channels_last), y


def no_images(split: str, count: int, generator: torch.Generator) -> Tensor:
    """In place of the images that a defense may look at: none of those timed does."""
    raise AssertionError("a defense that looks at no images asked for some")
