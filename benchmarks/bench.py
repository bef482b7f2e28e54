"""What the rows share: images, the two trained networks, our fast form of them, verdicts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom
from benchmarks import images
from benchmarks.sizes import Sizes
from benchmarks.training import plan, train
from robustbench_sparse.data import Dataset, PreparedData
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.models.build import on_device

Which = Literal["natural", "pgd_at"]
SEED = 0
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
        device: where everything runs.
        sizes: how much is done.
        root: folder of the data sets, or None.
        say: where lines of progress go.
        facts: what is to stand at the head of the result: networks, how long compiling took.
    """

    device: torch.device
    sizes: Sizes
    root: Path | None
    say: Callable[[str], None]
    facts: dict[str, str] = field(default_factory=dict)
    _networks: dict[Which, nn.Module] = field(default_factory=dict)
    _fast: dict[Which, FastNetwork] = field(default_factory=dict)

    @cached_property
    def dataset(self) -> Dataset:
        """The colour images."""
        dataset = images.load_colour(self.root)
        self.facts["images"] = dataset.label
        return dataset

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test images (N, 3, 32, 32) in [0, 1] and their labels, a fixed random choice in a random order."""
        order = torch.randperm(len(self.dataset.test_y), generator=torch.Generator().manual_seed(SEED))
        s = self.sizes
        order = order[: max(s.agree_images, s.attack_images, s.verdict_images, s.auto_images)]
        x = self.dataset.test_x[order].to(self.device).float() / 255
        return x, self.dataset.test_y[order].to(self.device)

    def part(self, count: int) -> tuple[Tensor, Tensor]:
        """The first so many test images and labels, or all there are."""
        x, y = self.test
        return x[:count], y[:count]

    def train_part(self, count: int) -> PreparedData:
        """At most so many training images, always the same ones."""
        return PreparedData(self.dataset, validation=0, device=self.device, train_limit=count, test_limit=1)

    def fast_training(self) -> dict[str, Any]:
        """Settings of our training's engine."""
        return {"precision": "bf16", "compile": "on" if self.sizes.compile else "off"}

    def network(self, which: Which) -> nn.Module:
        """A trained network: fp32, plain layout, eval mode; the form in which peers get it, and the judge."""
        if which not in self._networks:
            s = self.sizes
            adversarial = which == "pgd_at"
            run = plan(
                s.model,
                {
                    "epochs": s.at_epochs if adversarial else s.epochs,
                    "batch_size": s.train_batch,
                    "optimizer": {**SGD, "lr": 0.2},
                    "schedule": {"name": "one_cycle"},
                    "augment": {"crop": 2, "flip": not self.dataset.label.startswith("digits")},
                    **self.fast_training(),
                },
                [{"name": "pgd_at", "steps": s.at_steps}] if adversarial else [],
            )
            data, began = self.train_part(s.at_images if adversarial else s.train_images), time.perf_counter()
            model = train(run, data, SEED)
            seconds = time.perf_counter() - began
            x, y = self.test
            right = self.verdict(model, x, y).float().mean().item()
            how = f"PGD-{s.at_steps} adversarially" if adversarial else "naturally"
            epochs = run.stages[0].config.epochs
            self.facts[f"network {which}"] = (
                f"{s.model['name']}-{s.model['depth']} trained {how} on {data.count('train')} images for "
                f"{epochs} epochs by our trainer in {seconds:.0f} s, {100 * right:.1f} % clean accuracy on "
                f"{len(y)} test images"
            )
            self.say(f"  {self.facts[f'network {which}']}")
            self._networks[which] = model
        return self._networks[which]

    def fast(self, which: Which) -> FastNetwork:
        """Our form of the same weights, warmed up on a whole batch. It shares nothing with the peers' form."""
        if which not in self._fast:
            exact = on_device(copy.deepcopy(self.network(which)), self.device)  # as the harness holds it
            fast = FastNetwork(exact, precision="bf16", compile=self.sizes.compile)
            began = time.perf_counter()
            fast.warm_up(self.part(self.sizes.batch)[0])
            seconds = time.perf_counter() - began
            note = f", {fast.note}" if fast.note else ""
            self.facts[f"warm-up {which}"] = f"{seconds:.1f} s, once, outside all medians{note}"
            self._fast[which] = fast
        return self._fast[which]

    def streams(self, number: int, name: str, start: int, count: int) -> SampleRandom:
        """The random streams of test images ``start`` to ``start + count`` in one round."""
        return SampleRandom.for_images(SEED + number, name, range(start, start + count))

    def batches(self, x: Tensor, y: Tensor, attack: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        """``attack(x, y, position)`` batch by batch; the candidates of all images."""
        size = self.sizes.batch
        return torch.cat([attack(x[i : i + size], y[i : i + size], i) for i in range(0, len(y), size)])

    @torch.no_grad()
    def verdict(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Whether fp32 classifies each image right, (N,) bool."""
        size = self.sizes.batch
        return torch.cat(
            [model(x[i : i + size]).argmax(1) == y[i : i + size] for i in range(0, len(y), size)]
        )
