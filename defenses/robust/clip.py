"""CLIP, cheap Lipschitz training: the Lipschitz constant on adversarial pairs as a penalty.

Roith 1.2.1; Bungert, Raab, Roith, Schwinn, Tenbrinck 2021, https://arxiv.org/abs/2103.12531 (Alg. 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import LATER, Silence, check, noise_from, per_image
from defenses.base import Log, Step, frozen_statistics, summed
from defenses.robust.controller import Controlled
from defenses.robust.draws import BatchRandom

# Pairs closer than this count as this far apart: rounding of the logits would otherwise be taken for slope.
CLOSEST = 1e-4
# A pair's step size stays within this factor of its start, so that it can always recover.
STEP_RANGE = 1e6


@dataclass(frozen=True, kw_only=True)
class CLIP(Controlled):
    """Lipschitz regularisation on a set of pairs that ascends the Lipschitz quotient beside the training.

    Minimises L(theta) + lambda * max over pairs of L(x, x') = ||f(x) - f(x')||_2 / ||x - x'||_2, f the logits
    (Roith (1.3)). Every minibatch first moves each pair along tau L grad L, the gradient of L^2 / 2; a step
    is accepted only if L grew, and each pair's tau grows or shrinks by a factor accordingly (the authors'
    code). As it is printed (Roith 1.2.1) every step is taken, tau is fixed, the pairs are drawn once and no batch is
    left out: ``ascent: plain, renew_every: null, max_lipschitz: .inf``. The network is seen as it is deployed:
    batch-norm in eval mode, random layers at their mean, in float32.

    Further settings (``lam``, ``target_accuracy``, ``increment``, ``warm_up``, ``cooldown``, ``signal``) are
    those of :class:`defenses.robust.controller.Controlled`. While lambda is 0 nothing is computed and no pair moves.

    Args:
        reduction: what lambda multiplies: ``max``, L of the maximal pair; ``max_squared``, its L^2 (the
            authors' code); ``mean``, the mean of L^2 over all pairs.
        pairs: number of pairs, in [1, 100000].
        source: images the pairs start from: ``val`` or ``train``.
        init: ``perturbed``, an image x and x + init_noise * N(0, I); ``partial_random``, x and
            x + init_noise * U(0, 1); ``noise``, two draws of init_noise * U(0, 1). The latter two are the
            authors'.
        init_noise: size of that noise in pixel units, > 0.
        ascent_steps: ascent steps per minibatch, >= 1.
        ascent: ``accepted`` keeps a step only if L grew; ``plain`` takes every step, of size ``step_size``: too large a
            one loses the pair.
        step_size: tau at the start of every pair, > 0. The authors' code ascends L^2, so its 10 is 20 here.
        step_factor: what tau grows or shrinks by, >= 1; unused by ``plain``.
        renew_every: minibatches after which new pairs are drawn, >= 1; None keeps the first ones.
        max_lipschitz: the penalty is left out of a batch (0, with gradient 0) where what lambda multiplies
            exceeds this, or is not a number.
        box: keep the pairs in [0, 1]; the papers let them leave it.
        cheap: one backward pass for parameters and pairs: the pairs move along the gradients that the loss's
            backward pass leaves on them, by plain steps of size ``step_size``, one per minibatch and without
            an acceptance test, as Alg. 1 is written. Needs ``reduction: mean``, as a maximum has a gradient
            at one pair alone.
    """

    reduction: Literal["max", "max_squared", "mean"] = "max"
    pairs: int = 64
    source: Literal["val", "train"] = "val"
    init: Literal["perturbed", "partial_random", "noise"] = "perturbed"
    init_noise: float = 0.1
    ascent_steps: int = 1
    ascent: Literal["accepted", "plain"] = field(default="accepted", metadata=LATER)
    step_size: float = 1.0
    step_factor: float = 1.3
    renew_every: int | None = 2000
    max_lipschitz: float = 5e3
    box: bool = False
    cheap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        reductions, inits = ("max", "max_squared", "mean"), ("perturbed", "partial_random", "noise")
        check(self.reduction in reductions, "reduction", " or ".join(reductions), self.reduction)
        check(1 <= self.pairs <= 100_000, "pairs", "an integer in [1, 100000]", self.pairs)
        check(self.source in ("val", "train"), "source", "'val' or 'train'", self.source)
        check(self.init in inits, "init", " or ".join(inits), self.init)
        check(0 < self.init_noise < math.inf, "init_noise", "a finite number > 0", self.init_noise)
        check(self.ascent_steps >= 1, "ascent_steps", "an integer >= 1", self.ascent_steps)
        check(self.ascent in ("accepted", "plain"), "ascent", "accepted or plain", self.ascent)
        check(0 < self.step_size < math.inf, "step_size", "a finite number > 0", self.step_size)
        check(1 <= self.step_factor < math.inf, "step_factor", "a finite number >= 1", self.step_factor)
        every = self.renew_every
        check(every is None or every >= 1, "renew_every", "an integer >= 1 or null", every)
        check(self.max_lipschitz > 0, "max_lipschitz", "a number > 0", self.max_lipschitz)
        check(
            not self.cheap or self.reduction == "mean", "cheap", "reduction: mean beside it", self.reduction
        )
        check(
            not self.cheap or self.ascent_steps == 1, "cheap", "ascent_steps: 1 beside it", self.ascent_steps
        )

    def check_stage(self, s: Step) -> None:
        """There must be a validation part where pairs or the signal come from it."""
        super().check_stage(s)
        if self.lam > 0 or self.target_accuracy is not None:
            fine = self.source == "train" or not math.isnan(s.val_accuracy)
            check(fine, "source", "'train' without a validation part", self.source)

    def begin(self, s: Step) -> None:
        """Pairs are drawn when the first minibatch needs them."""
        super().begin(s)
        self.memory["skipped"] = 0

    def penalty(self, s: Step) -> Tensor | None:
        """Ascend the pairs, then return lambda times the term; None at lambda 0.

        Where the term is too large it is 0 with gradient 0, or, with ``cheap``, None: there the network sees the
        pairs only once, in the graph that would have to be left out, so the value is waited for.
        """
        lam = self.memory["lam"]
        if lam == 0:
            return None
        self._renew(s)
        with _as_deployed(s.model, self.memory["first"].device):
            term = self._cheap_term(s.model) if self.cheap else self._term(s.model)
        if self.cheap and not float(term.detach()) <= self.max_lipschitz:  # also when it is NaN
            self.memory["skipped"] += 1
            del self.memory["moving"]
            return None
        penalty: Tensor = lam * term
        return penalty

    def before_step(self, s: Step) -> None:
        """Cheap: the backward pass has left lambda * 2 L grad L / pairs on every pair."""
        moving = self.memory.pop("moving", None)
        if moving is None:
            return
        scale = self.step_size * self.pairs / (2 * self.memory["lam"])
        gradients = summed(s, [point.grad for point in moving])
        for name, point, gradient in zip(("first", "second"), moving, gradients, strict=True):
            assert gradient is not None, "the loop must call backward() on the loss with the penalty in it"
            moved = point.detach() + scale * gradient
            self.memory[name] = moved.clamp(0, 1) if self.box else moved

    def end_epoch(self, s: Step) -> Log:
        """Steer lambda; log it, the pairs' largest L at the last minibatch, and the batches left out yet."""
        log = super().end_epoch(s)
        if log["lam"] > 0:
            log["lipschitz"] = float(self.memory["lipschitz"])
        return {**log, "skipped": int(self.memory["skipped"])}

    def _renew(self, s: Step) -> None:
        """Draw pairs at the start and every ``renew_every`` minibatches."""
        age, every = self.memory.get("age"), self.renew_every
        if age is None or (every is not None and age >= every):
            images = s.images(self.source, self.pairs, s.generator)
            self.memory["first"], self.memory["second"] = self._draw(images, BatchRandom(s.generator))
            self.memory["step"] = images.new_full((len(images),), self.step_size)
            self.memory["age"] = 0
        self.memory["age"] += 1

    def _draw(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        if self.init == "noise":
            return self.init_noise * random.uniform(images), self.init_noise * random.uniform(images)
        noise = random.normal(images) if self.init == "perturbed" else random.uniform(images)
        second = images + self.init_noise * noise
        return images, second.clamp(0, 1) if self.box else second

    def _term(self, model: nn.Module) -> Tensor:
        """Move the pairs and return what lambda multiplies; differentiable in the parameters."""
        first, second, step = (self.memory[k] for k in ("first", "second", "step"))
        for _ in range(self.ascent_steps):
            first, second, step, values = ascend(
                model, first, second, step, self.step_factor, self.box, plain=self.ascent == "plain"
            )
        step = step.clamp(self.step_size / STEP_RANGE, self.step_size * STEP_RANGE)
        self.memory.update(first=first, second=second, step=step, lipschitz=values.max())
        if self.reduction != "mean":  # one pair through the network is enough for a maximum
            top = values.argmax().view(1)
            first, second, values = (t.index_select(0, top) for t in (first, second, values))
        squared = self.reduction != "max"
        small = (values.square() if squared else values).mean() <= self.max_lipschitz  # False for NaN
        # Counted and decided on the device, as reading it would wait for the network. Two black images take the
        # place of pairs to be left out: times 0 their gradients are 0, those of an overflow would be NaN.
        self.memory["skipped"] = self.memory["skipped"] + (~small).long()
        value = quotient(model, *(torch.where(small, p, 0) for p in (first, second)))
        return torch.where(small, (value.square() if squared else value).mean(), 0)

    def _cheap_term(self, model: nn.Module) -> Tensor:
        """The mean of L^2 at the pairs as they are; backward() will leave gradients on them."""
        moving = [self.memory[k].detach().clone().requires_grad_(True) for k in ("first", "second")]
        values = quotient(model, *moving)
        self.memory.update(moving=moving, lipschitz=values.detach().max())
        return values.square().mean()


def quotient(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """L(x, x') = ||f(x) - f(x')||_2 / ||x - x'||_2 of each pair; two tensors (P, ...) -> (P,)."""
    out = model(torch.cat((first, second))).flatten(1)  # (2P, K)
    rise = torch.linalg.vector_norm(out[: len(first)] - out[len(first) :], dim=1)
    run = torch.linalg.vector_norm((first - second).flatten(1), dim=1)
    value: Tensor = rise / run.clamp_min(CLOSEST)
    return value


def ascend(
    model: nn.Module,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    factor: float,
    box: bool = False,
    *,
    plain: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ascent step on L^2 / 2 for every pair, taken only where L grew (Roith 1.2.1; CLIP, Alg. 1).

    Args:
        model: the network, as deployed.
        first: the pairs' first points x, (P, ...).
        second: their second points, alike.
        step: each pair's step size tau, (P,).
        factor: what tau is multiplied by where L grew, and divided by elsewhere.
        box: keep the points in [0, 1].
        plain: take the step whatever L does, and leave tau as it is.

    Returns:
        Both points and the step sizes for the next time, and L at the points returned (P,), all detached.
    """
    old = [p.detach().requires_grad_(True) for p in (first, second)]
    with torch.enable_grad():
        before = quotient(model, *old)
        grads = torch.autograd.grad((before.square() / 2).sum(), old)
    with torch.no_grad():
        new = [p + per_image(step, p) * g for p, g in zip(old, grads, strict=True)]
        new = [p.clamp(0, 1) for p in new] if box else new
        after = quotient(model, *new)
        if plain:
            return new[0], new[1], step, after
        grew = after > before
        first, second = (torch.where(per_image(grew, n), n, o) for n, o in zip(new, old, strict=True))
        return (
            first,
            second,
            torch.where(grew, step * factor, step / factor),
            torch.where(grew, after, before),
        )


@contextmanager
def _as_deployed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, noise at its mean, no mixed precision: a difference of bf16 logits is mostly rounding."""
    # Silence is the mean of the noise: both points of a pair see the same network.
    with frozen_statistics(model), noise_from(model, Silence()), torch.autocast(device.type, enabled=False):
        yield
