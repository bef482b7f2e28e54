"""The defense interface: optional hooks around one training step, and the state they see.

A defense is a frozen, keyword-only dataclass whose fields are its settings. What it keeps between steps
(multipliers, pairs, auxiliary variables) lives in ``self.memory``, so that saving and resuming is one rule
for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.base import Threat, check

Make = Callable[[], nn.Module]
Log = dict[str, float]
Layers = Literal["conv", "linear", "all"]
Precision = Literal["fp32", "bf16"]
Kind = Literal["weight", "channel", "kernel", "row"]
KINDS: tuple[str, ...] = get_args(Kind)
ZERO_CHANNEL = 1e-15  # a channel of smaller l2 norm counts as zero (Dinh 4.2.3)


class ImageSource(Protocol):
    """The images a defense may look at: never those of the test set."""

    def __call__(self, split: Literal["train", "val"], count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` images in [0, 1] from the training or validation part, (count, C, H, W)."""
        ...


class Part(Protocol):
    """The part of every minibatch that this process trains on, where several of them train one network.

    Attributes:
        first: number of its first image within the whole minibatch.
        count: its images.
        of: the whole minibatch's.
    """

    first: int
    count: int
    of: int

    def total(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Sums over all processes, tensor by tensor, the same on each of them; None stays None."""
        ...

    def whole(self, values: Tensor) -> Tensor:
        """Of all processes what each has of its part: (count, ...) -> (of, ...)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The share of zeros that a method was asked for, to be held against what the saved file has.

    Attributes:
        kind: of what: single weights, input channels, kernels or rows, counted as in every sparsity figure.
        percent: the share, in [0, 100].
        names: the weights meant, by parameter name.
        binding: the method projects, so the share is met or something is wrong; else it is a goal it steers for.
    """

    kind: Kind = "weight"
    percent: float
    names: tuple[str, ...]
    binding: bool = True


@dataclass
class Step:
    """What a hook sees: the loop fills it in and keeps it up to date.

    Attributes:
        model: the network in training.
        optimizer: the stage's optimizer; not yet built when ``begin`` is called.
        threat: the benchmark's threat, the default of defenses that attack.
        generator: this defense's own random stream.
        images: draws further training or validation images.
        stage: number of the stage, from 0.
        epoch: number of the epoch within its stage, from 0; ``epochs`` is the stage's length.
        step: number of optimizer steps taken in this run so far.
        steps_per_epoch: minibatches of one epoch.
        minibatch: number of the minibatch within its epoch, from 0.
        x: the minibatch of images trained on, (B, C, H, W) in [0, 1]; y: its labels, (B,).
        outputs: the network's outputs on ``x``, (B, ...): with their graph when ``criterion`` and ``penalty`` are
            asked, without it from ``after_backward`` to the end of the step, and None before the forward pass.
        forward: a further pass of images (B, C, H, W) through the network as it is trained: in the stage's
            precision, compiled where it says so; see ``forward_of``. None means the network itself.
        objective: gives the training loss on the present minibatch, a scalar with its graph, in the network's training
            mode: the task's loss or that of ``criterion``, and the penalties of those defenses that are
            ``repeatable``. Nothing remembers that it was asked: batch-norm statistics and ``outputs`` stay as they
            are. It may be asked in ``before_forward``; None where a loop has none.
        lr: learning rate of the current step.
        fast: makes a copy of the network as it is now, in eval mode, that is quick to attack and has gradients for
            its input only; None where the network itself is as quick.
        quick: as ``fast``, also where the stage runs in float32, and in a precision: ``fp32``, ``bf16`` or the stage's
            (None). It gives the network's own answers but for rounding. None where a loop makes no copies.
        part: where several processes train the network, each on a part of the minibatch: which this one has, and what
            they can add up. None where the minibatch is whole. ``objective`` is then this part's share of the loss; see
            ``summed`` and ``gathered``.
        fresh: makes another network of this kind on the CPU, its weights drawn as those of this one were, but from the
            generator given; None where nothing can.
        tell: shows the user a line; None where nobody looks.
        train_accuracy: share of the epoch's training images classified right, in [0, 1]; from ``end_epoch``
            on.
        val_accuracy: the same on the validation part, with the deployed network.
        val_adversarial_accuracy: that of the deployed network on the validation part under attack, in [0, 1]; NaN
            where nothing asked for it, see ``Defense.needs_robust_validation``.
        sparsity: percentages of zero weights, channels, kernels and rows of the deployed network, by the names
            ``weight_sparsity`` and so on; None where there is nothing of the kind. Fresh from ``end_epoch`` on.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    threat: Threat
    generator: torch.Generator
    images: ImageSource
    stage: int = 0
    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps_per_epoch: int = 1
    minibatch: int = 0
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    outputs: Tensor | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    objective: Callable[[], Tensor] | None = None
    lr: float = 0.0
    fast: Callable[[], nn.Module] | None = None
    quick: Callable[[Precision | None], nn.Module] | None = None
    fresh: Callable[[torch.Generator], nn.Module] | None = None
    part: Part | None = None
    tell: Callable[[str], None] | None = None
    train_accuracy: float = float("nan")
    val_accuracy: float = float("nan")
    val_adversarial_accuracy: float = float("nan")
    sparsity: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Defense:
    """Base of all defenses. Every hook does nothing unless a subclass writes it.

    Hooks of several defenses run in the order of the config's list.

    Attributes:
        sparsifies: the deployed network has zeros on account of this defense; without it, it would be dense.
        owns_mask: it alone decides which weights of a stage are zero: nothing that ``sparsifies`` may act beside it.
        repeatable: ``penalty`` is of the answers to the images, and asking it twice for one minibatch changes nothing.
        needs_attack: it means something only beside a defense that attacks the training images.
        tasks: what the networks that it is for are trained for: ``classify``, or ``restore`` images.
    """

    sparsifies: ClassVar[bool] = False
    owns_mask: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False
    needs_attack: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("classify", "restore")
    memory: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def passes(self) -> int:
        """Gradient passes that ``perturb`` sends every minibatch through."""
        return 0

    @property
    def divides(self) -> bool | None:
        """Whether several processes may each do its part of a minibatch: losses are means over images, draws for images
        know ``Step.part``, and nothing else depends on what is beside an image. None: those of this package do.
        """
        return None

    @property
    def needs_robust_validation(self) -> bool:
        """Whether ``end_epoch`` reads ``Step.val_adversarial_accuracy``."""
        return False

    def check(self, model: nn.Module) -> None:
        """Raise ValueError when this defense cannot work on such a network (weights may be on "meta")."""

    def check_stage(self, s: Step) -> None:
        """Raise ValueError when this defense cannot work in such a stage; asked before anything trains.

        Set in ``s`` are the network and the optimizer (their weights may be on "meta"), threat, stage, epochs and
        steps per epoch; ``val_accuracy`` is a number where there is a validation part, and else NaN.
        """

    def wrap(self, make: Make) -> Make:
        """Turn the factory of one network into the factory of the network to train."""
        return make

    def begin(self, s: Step) -> None:
        """A stage starts; the optimizer is not built yet. Allocate memory here, sparsify, prune.

        A run that resumes calls this too, then puts weights, random streams and memory back to their saved
        state: what is bound to the model or to ``s`` here (a noise source) need not be saved.
        """

    def perturb(self, s: Step) -> Tensor:
        """Return the images to train on in place of ``s.x``. At most one defense of a stage writes this."""
        return s.x

    def before_forward(self, s: Step) -> None:
        """The images to train on stand in ``s.x``, the network has not seen them yet.

        The weights may be moved here for the length of the pass, if ``after_backward`` puts them back.
        """

    def criterion(self, s: Step) -> Tensor | None:
        """A scalar that takes the place of the task's loss, or None to leave that in place.

        At most one defense of a stage writes this. ``s.outputs`` are the network's. Asking twice changes nothing.
        """
        return None

    def penalty(self, s: Step) -> Tensor | None:
        """A scalar added to the loss, or None for nothing (which leaves the loss untouched, bit for bit).

        Called after the training batch's forward pass: until backward() batch-norm statistics stay put.
        """
        return None

    def after_backward(self, s: Step) -> None:
        """Gradients are there; no ``before_step`` has run yet. What ``before_forward`` moved is put back here."""

    def before_step(self, s: Step) -> None:
        """Gradients are there, the optimizer has not stepped yet."""

    def after_step(self, s: Step) -> None:
        """The optimizer has stepped. Runs without gradients."""

    def end_epoch(self, s: Step) -> Log:
        """Accuracies are fresh. Runs without gradients; returns numbers for the history."""
        return {}

    def deploy(self, model: nn.Module) -> nn.Module:
        """The network that is judged. Must not change its argument: copy first when anything changes."""
        return model

    def asked(self, model: nn.Module) -> Asked | None:
        """The share of zeros asked for in a network like this one; None where no share is asked for."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after a kill: tensors, numbers, lists and dictionaries of them."""
        return copy.deepcopy(self.memory)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.memory.clear()
        self.memory.update(copy.deepcopy(state))


def overrides(defense: Defense, hook: str) -> bool:
    """Whether a defense writes a hook itself."""
    return getattr(type(defense), hook) is not getattr(Defense, hook)


def conv_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights (out, in, k, k) of all 2-D convolutions by parameter name, in the model's order."""
    return _weights_of(model, nn.Conv2d)


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights of all convolutions and linear layers by name: the denominator of every sparsity figure."""
    return _weights_of(model, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def chosen_weights(model: nn.Module, layers: Layers) -> dict[str, Tensor]:
    """The prunable weights of 2-D convolutions, of linear layers, or all, by name, in the model's order.

    Raises:
        ValueError: for another choice of layers.
    """
    check(layers in LAYERS, "layers", " or ".join(LAYERS), layers)
    return LAYERS[layers](model)


def counted_weights(model: nn.Module, kind: Kind) -> tuple[str, ...]:
    """Names of the prunable weights that have such things to count: a linear layer has no channels and kernels."""
    return tuple(name for name, w in prunable(model).items() if kind in ("weight", "row") or w.ndim > 2)


LAYERS: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    "conv": conv_weights,
    "linear": lambda model: _weights_of(model, nn.Linear),
    "all": prunable,
}


def _weights_of(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds) and isinstance(module.weight, Tensor)
    }


def summed(s: Step, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of the whole minibatch what was computed from this process's part of it, such as gradients of ``objective``."""
    return list(tensors) if s.part is None else s.part.total(tensors)


def gathered(s: Step, values: Tensor) -> Tensor:
    """The whole minibatch's images or labels, given this process's; (b, ...) -> (B, ...)."""
    return values if s.part is None else s.part.whole(values)


def forward_of(s: Step) -> Callable[[Tensor], Tensor]:
    """The network's pass as in training: ``s.forward``, or the network itself where a loop gives none."""
    return s.model if s.forward is None else s.forward


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Run a block with the network in eval mode, and every module's mode put back afterwards.

    Batch-norm statistics and dropout are those of the deployed network, and stay untouched.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def unrecorded_statistics(model: nn.Module) -> Iterator[None]:
    """Run a block in which batch-norm layers keep no record of what they see; in training mode nothing else changes."""
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    try:
        for m in layers:
            m.track_running_stats = False
        yield
    finally:
        for m in layers:
            m.track_running_stats = True
