"""What the contracts of defenses and optimizers share: small networks, and a training loop of nothing but hooks."""

from __future__ import annotations

import dataclasses
import io
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import GeneratorNoise, Threat, noise_from
from defenses import Defense, Step
from defenses.base import overrides, unrecorded_statistics
from robustbench_sparse.config.optimizers import OptimizerSpec, SGDSpec
from tests.helpers.zeros import zero_shares

ROWS, BATCH, EPOCH = 24, 8, 3  # images, images a batch, steps an epoch
X = torch.rand(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (ROWS,), generator=torch.Generator().manual_seed(2))
MOMENTUM = SGDSpec(lr=0.1, momentum=0.9, weight_decay=5e-4)


class Block(nn.Module):
    is_residual_block = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


def tiny() -> nn.Module:
    """A residual network."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), Block(6), Block(6), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 3)
    )


def chain() -> nn.Module:
    """A network whose every batch-norm layer has a layer of its own before it."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4)),
        *(nn.Flatten(), nn.Linear(32, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)),
    )


@dataclass(frozen=True)
class Case:
    """A defense, what it is trained with, whether it leaves zeros in the network that is judged, and which that is."""

    defense: Defense
    optimizer: OptimizerSpec = MOMENTUM
    zeros: bool = True
    network: Callable[[], nn.Module] = tiny

    def loop(self) -> Loop:
        return Loop([fresh(self.defense)], self.optimizer, self.network)


def batch(step: int) -> tuple[Tensor, Tensor]:
    rows = slice(step % EPOCH * BATCH, (step % EPOCH + 1) * BATCH)
    return X[rows], Y[rows]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A network, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


class Loop:
    """The hooks in their order around one training step; everything else is left out."""

    def __init__(
        self,
        defenses: list[Defense],
        spec: OptimizerSpec = MOMENTUM,
        network: Callable[[], nn.Module] = tiny,
    ) -> None:
        make = network
        for d in defenses:
            make = d.wrap(make)
        self.model = made(make)
        self.defenses, self.count, self.losses = defenses, 0, list[float]()
        generators = [torch.Generator().manual_seed(7 + i) for i in range(len(defenses))]
        self.steps = [
            Step(self.model, None, Threat(eps=0.1), g, self.images, epochs=9, steps_per_epoch=EPOCH)
            for g in generators
        ]
        for d, s in zip(defenses, self.steps, strict=True):
            d.check(self.model)
            d.begin(s)
        self.optimizer = spec.build(self.model)
        for s in self.steps:
            s.optimizer = self.optimizer

    def images(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        assert any(generator is s.generator for s in self.steps)
        part = X[:16] if split == "train" else X[16:]
        return part[torch.randint(len(part), (count,), generator=generator)]

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            self.one_step()
        return self

    def one_step(self) -> None:
        x, y = batch(self.count)
        pairs = list(zip(self.defenses, self.steps, strict=True))
        self.model.train()
        for d, s in pairs:
            s.x, s.y, s.step, s.epoch = x, y, self.count, self.count // EPOCH
            s.lr, s.minibatch = self.optimizer.param_groups[0]["lr"], self.count % EPOCH
            x = d.perturb(s) if overrides(d, "perturb") else x
        for d, s in pairs:
            s.x, s.objective = x, self.objective
            d.before_forward(s)
        loss = self.loss(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        for d, s in pairs:
            d.after_backward(s)
        for d, s in pairs:
            d.before_step(s)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.count += 1
        with torch.no_grad():
            for d, s in pairs:
                d.after_step(s)
        if self.count % EPOCH == 0:
            self.end_epoch()

    def loss(self, x: Tensor, y: Tensor, repeatable: bool = False) -> Tensor:
        outputs = self.model(x)
        loss = None
        pairs = list(zip(self.defenses, self.steps, strict=True))
        for d, s in pairs:
            s.x, s.outputs = x, outputs
            loss = d.criterion(s) if loss is None else loss
        loss = F.cross_entropy(outputs, y) if loss is None else loss
        for d, s in pairs:
            term = d.penalty(s) if d.repeatable or not repeatable else None
            loss = loss if term is None else loss + term
        return loss

    def objective(self) -> Tensor:
        with unrecorded_statistics(self.model):
            return self.loss(self.steps[0].x, self.steps[0].y, repeatable=True)

    @torch.no_grad()
    def end_epoch(self) -> None:
        sparsity = zero_shares(self.deployed())
        accuracy = (self.logits().argmax(1) == Y).double().mean().item()
        for d, s in zip(self.defenses, self.steps, strict=True):
            s.val_accuracy = s.train_accuracy = s.val_adversarial_accuracy = accuracy
            s.sparsity = sparsity
            assert all(isinstance(v, float | int) for v in d.end_epoch(s).values())

    def deployed(self) -> nn.Module:
        model = self.model
        for d in self.defenses:
            model = d.deploy(model)
        return model

    def logits(self) -> Tensor:
        return logits(self.deployed())

    def state(self) -> dict[str, typing.Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "defenses": [d.state_dict() for d in self.defenses],
            "generators": [s.generator.get_state() for s in self.steps],
        }

    def saved(self) -> dict[str, typing.Any]:
        """The state as a file gives it back."""
        file = io.BytesIO()
        torch.save(self.state(), file)
        file.seek(0)
        state: dict[str, typing.Any] = torch.load(file, weights_only=True)
        return state

    def load(self, state: dict[str, typing.Any], count: int) -> Loop:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for d, s, memory, stream in zip(
            self.defenses, self.steps, state["defenses"], state["generators"], strict=True
        ):
            d.load_state_dict(memory)
            s.generator.set_state(stream)
        self.count = count
        return self


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits of all images in eval mode, with the same noise every time."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with noise_from(model, GeneratorNoise(torch.Generator().manual_seed(5))):
        out: Tensor = model(X)
    for m, mode in modes:
        m.training = mode
    return out


def natural(
    steps: int, spec: OptimizerSpec = MOMENTUM, network: Callable[[], nn.Module] = tiny
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Plain PyTorch training."""
    model = made(network)
    optimizer = spec.build(model)
    for k in range(steps):
        x, y = batch(k)
        loss = F.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, optimizer


def fresh(defense: Defense) -> Defense:
    """The same settings with an empty memory."""
    return dataclasses.replace(defense)


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def same_run(a: Loop, b: Loop, killed_after: int) -> None:
    """Run ``a``, resumed after so many steps, has to end as the unbroken ``b``."""
    assert equal(a.model.state_dict().values(), b.model.state_dict().values())
    assert torch.equal(a.logits(), b.logits())
    for s, t in zip(a.steps, b.steps, strict=True):
        assert torch.equal(s.generator.get_state(), t.generator.get_state())
    assert a.losses == b.losses[killed_after:]
