"""How much each row does: enough for a median, little enough for fifteen minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Amounts of work.

    Attributes:
        model: the network's entry in a config.
        compile: compile our side; off only where a trial must take seconds.
        train_images, epochs: of the natural network; ``at_`` the same of the adversarially trained one, whose
            inner attack takes ``at_steps``.
        batch: images per call, on both sides.
        attack_images, attack_steps: of the PGD rows.
        verdict_images, verdict_batch: of the rows to a verdict, and how many our side takes at once: as images leave,
            a small batch would run empty (``batch_size: auto`` chooses so, too).
        cw_images, cw_steps: of the C&W row.
        auto_images, auto_queries: of the AutoAttack row: images, of which the first half is timed; Square's queries.
        agree_images: images on which the fast path's verdicts are held against the fp32 path's.
        epoch_images, epoch_steps: images and PGD steps of the timed epoch of adversarial training.
        accuracy_images, accuracy_epochs, seeds: of the comparison of accuracies after equal epochs.
        repeats: rounds of long pieces of work; ``short_repeats`` of those under a second.
        train_batch: images per training step.
        mnist_images: images of the MLP's epoch.
        shrunk: networks that are shrunk, by the name they are shown under.
        starts: how often the command line is started.
        whole_runs: time whole benchmarks; off in a trial, which takes the smallest.
    """

    model: dict[str, Any]
    compile: bool = True
    train_images: int
    epochs: int
    at_images: int
    at_epochs: int
    at_steps: int
    batch: int
    attack_images: int
    verdict_images: int
    verdict_batch: int
    attack_steps: int = 20
    cw_images: int
    cw_steps: int = 50
    auto_images: int = 1000
    auto_queries: int = 5000
    agree_images: int = 1000
    epoch_images: int
    epoch_steps: int = 10
    accuracy_images: int
    accuracy_epochs: int
    seeds: tuple[int, ...] = (0, 1, 2)
    repeats: int = 3
    short_repeats: int
    train_batch: int = 128
    mnist_images: int = 60_000
    shrunk: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"VGG16": {"name": "vgg16"}, "ResNet-18": {"name": "resnet18"}}
    )
    starts: int = 5
    whole_runs: bool = True


RESNET20 = {"name": "preact_resnet", "depth": 20}

CPU = Sizes(
    model=RESNET20,
    train_images=16_384,
    epochs=4,
    at_images=8_192,
    at_epochs=4,
    at_steps=5,
    batch=128,
    attack_images=256,
    verdict_images=512,
    verdict_batch=512,
    cw_images=128,
    epoch_images=1_280,
    accuracy_images=2_048,
    accuracy_epochs=8,
    short_repeats=21,
)

CUDA = Sizes(
    model=RESNET20,
    train_images=50_000,
    epochs=8,
    at_images=50_000,
    at_epochs=8,
    at_steps=7,
    batch=512,
    attack_images=4_096,
    verdict_images=4_096,
    verdict_batch=4_096,
    cw_images=2_048,
    epoch_images=12_800,
    accuracy_images=50_000,
    accuracy_epochs=15,
    repeats=5,
    short_repeats=31,
)

QUICK = Sizes(
    model={"name": "preact_resnet", "depth": 8, "widths": [4, 8, 8]},
    compile=False,
    train_images=256,
    epochs=1,
    at_images=64,
    at_epochs=1,
    at_steps=2,
    batch=16,
    attack_images=24,
    verdict_images=24,
    verdict_batch=24,
    attack_steps=3,
    cw_images=8,
    cw_steps=5,
    auto_images=24,
    auto_queries=20,
    agree_images=40,
    epoch_images=32,
    epoch_steps=2,
    accuracy_images=32,
    accuracy_epochs=1,
    seeds=(0,),
    whole_runs=False,
    repeats=2,
    short_repeats=3,
    train_batch=16,
    mnist_images=1_280,
    shrunk={"VGG16": {"name": "vgg16", "width": 4}, "ResNet-8": {"name": "preact_resnet", "depth": 8}},
    starts=1,
)
