"""What every attack stands on: the threat, per-image randomness, gradients of random networks, the base class.

Images are float tensors in [0, 1] of shape (B, C, H, W); labels are int64 tensors of shape (B,); a model
maps images to logits of shape (B, K).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

Norm = Literal["linf", "l2"]
# Metadata of a setting that has come since numbers were stored: records leave it out where it has its default, so that
# what is stored keeps its name.
LATER = {"later": True}
BALL_SLACK = 1e-6
L2_SLACK = 1e-5  # relative: an l2 norm sums thousands of rounded squares
Target = Literal["none", "given", "runner_up", "least_likely", "next", "random"]
Reference = Literal["label", "prediction"]
# Maps (logits (B, K), labels (B,)) to one loss per image (B,); a larger loss is closer to misclassification.
Loss = Callable[[Tensor, Tensor], Tensor]


def check(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ``ValueError("NAME: expected EXPECTED, got GOT")`` unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, 1, ...) so that it broadcasts against ``like`` of shape (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class Threat:
    """The set of images an adversary may reach: a ball around the clean image, inside the box [0, 1].

    Args:
        norm: ``linf`` or ``l2``, over all pixels and channels of an image.
        eps: radius in units of the pixel range, >= 0; ``inf`` means no bound but the box.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        check(self.norm in ("linf", "l2"), "norm", "'linf' or 'l2'", self.norm)
        check(self.eps >= 0, "eps", "a number >= 0", self.eps)

    @property
    def reach(self) -> float:
        """The largest norm that counts as inside: eps and what float32's rounding may add, not more."""
        return self.eps + BALL_SLACK + (L2_SLACK * self.eps if self.norm == "l2" else 0.0)

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation; (B, ...) -> (B,)."""
        flat = delta.flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(flat, dim=1)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value each pixel may take, the box included; two tensors shaped like ``x``.

        For l_inf they are the whole threat, and ``project`` is a clamp between them.
        """
        reach = self.eps if self.norm == "linf" else math.inf
        return (x - reach).clamp_min(0), (x + reach).clamp_max(1)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring ``x_adv`` into the ball around ``x`` and into [0, 1].

        The ball comes first, the box second: clipping to the box moves every pixel towards ``x``, so the
        result lies in both sets. For l_inf it is the nearest such point.
        """
        return self.into_ball(x_adv, x).clamp(0, 1)

    def into_ball(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring ``x_adv`` into the ball around ``x``, whatever the box; for l2 along the line to ``x``."""
        if math.isinf(self.eps):
            return x_adv
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps)
        delta = x_adv - x
        size = self.size(delta)
        # Only points outside are moved; inside, the factor is exactly 1 and no rounding creeps in.
        factor = torch.where(size > self.eps, self.eps / size.clamp_min(1e-30), torch.ones_like(size))
        return x + delta * per_image(factor, delta)


# Images, and values in them, that passes over a random network send through it at once: what fits a core's caches.
_IMAGES, _VALUES = 512, 1 << 19


class SampleRandom:
    """Random numbers in which every image has a stream of its own.

    A draw for one image depends on its own stream alone, so an attack's result does not depend on which
    images share its batch, on their order, or on images that left the batch early.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = list(generators)

    @classmethod
    def for_images(cls, seed: int, name: str, indices: Sequence[int]) -> SampleRandom:
        """Streams for the images at ``indices`` of a data set, fixed by the seed and a stream name."""
        return cls([_seeded(f"{seed}/{name}/{i}") for i in indices])

    @classmethod
    def spawn(cls, generator: torch.Generator | None, count: int) -> SampleRandom:
        """``count`` streams seeded by draws from one generator (torch's default one if None)."""
        seeds = torch.randint(2**62, (count,), generator=generator)
        return cls([torch.Generator().manual_seed(s) for s in seeds.tolist()])

    def __len__(self) -> int:
        return len(self._generators)

    def subset(self, keep: Tensor) -> SampleRandom:
        """The streams of some images: a bool mask (B,) or indices. They stay shared with this object."""
        chosen = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return SampleRandom([self._generators[i] for i in chosen.tolist()])

    def branches(self, count: int) -> list[SampleRandom] | None:
        """``count`` sets of streams, fixed by one draw from each image's own; None where images share a stream.

        Passes that each have a set of their own may run together, in any number, and draw the same numbers.
        """
        seeds = [int(torch.randint(2**62, (), generator=g)) for g in self._generators]
        return [SampleRandom([torch.Generator().manual_seed(s + i) for s in seeds]) for i in range(count)]

    @staticmethod
    def joined(parts: Sequence[SampleRandom]) -> SampleRandom:
        """The streams of a batch that consists of several, one after another."""
        return SampleRandom([g for part in parts for g in part._generators])

    def uniform(self, like: Tensor) -> Tensor:
        """U(0, 1) with the shape, type and device of ``like`` (B, ...)."""
        return self._fill(like, lambda out, g: out.uniform_(generator=g))

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) with the shape, type and device of ``like`` (B, ...)."""
        return self._fill(like, lambda out, g: out.normal_(generator=g))

    def integers(self, high: int) -> Tensor:
        """One integer in [0, high) per image; (B,) on the CPU."""
        return torch.stack([torch.randint(high, (), generator=g) for g in self._generators])

    def counters(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and places of ``count`` images for ``attacks.philox.normals``: a new key from each image's stream.

        Raises:
            ValueError: when there are more or fewer images than streams.
        """
        if count != len(self):
            raise ValueError(f"expected a tensor of {len(self)} images, got {count}")
        keys = torch.empty(count, dtype=torch.int64)
        for row, generator in zip(keys, self._generators, strict=True):
            row.random_(2**62, generator=generator)
        return keys, torch.zeros_like(keys)

    def _fill(self, like: Tensor, fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        if like.shape[0] != len(self):
            raise ValueError(f"expected a tensor of {len(self)} images, got {like.shape[0]}")
        # Drawn on the CPU in float32 and row-major, whatever `like` is: the same numbers on every device.
        out = torch.empty(like.shape, dtype=torch.float32)
        for row, generator in zip(out, self._generators, strict=True):
            fill(row, generator)
        return out.to(device=like.device, dtype=like.dtype)


def _seeded(text: str) -> torch.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def batch_counters(generator: torch.Generator | None, count: int) -> tuple[Tensor, Tensor]:
    """Keys and places for ``attacks.philox.normals``, int64 (count,): one key, drawn once, and a place for each image.

    Args:
        generator: torch's default one if None.
        count: the batch's images.
    """
    device = None if generator is None else generator.device
    key = torch.randint(2**62, (), generator=generator, device=device)
    return torch.full((count,), int(key)), torch.arange(count)


class NoiseSource(Protocol):
    """Where a random network gets its noise: anything that can draw N(0, 1) shaped like a tensor."""

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) with the shape, type and device of ``like``."""
        ...


class GeneratorNoise:
    """Noise from one ``torch.Generator`` for the whole batch: fast, for training."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) with the shape, type and device of ``like``."""
        out = torch.randn(
            like.shape, generator=self.generator, dtype=torch.float32, device=self.generator.device
        )
        return out.to(device=like.device, dtype=like.dtype)

    def counters(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and places of ``count`` images."""
        return batch_counters(self.generator, count)


class RandomModule(nn.Module):
    """Base of layers that draw noise at inference. ``noise_source`` None means torch's global generator."""

    noise_source: NoiseSource | None = None

    def draw(self, like: Tensor) -> Tensor:
        """N(0, 1) shaped like a tensor, from the bound source."""
        if self.noise_source is not None:
            return self.noise_source.normal(like)
        # Not randn_like: for other types and layouts than the plain ones it draws one number at a time.
        wide = torch.promote_types(like.dtype, torch.float32)
        return torch.randn(like.shape, dtype=wide, device=like.device).to(like.dtype)

    def counters(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Keys and places of ``count`` images from the bound source; None where it only gives numbers."""
        if self.noise_source is None:
            return batch_counters(None, count)
        counters = getattr(self.noise_source, "counters", None)
        return None if counters is None else counters(count)


def is_stochastic(model: nn.Module) -> bool:
    """Whether two forward passes on the same image may differ.

    True when the model or one of its parts says ``stochastic = True``, or holds a ``RandomModule`` that does
    not say ``stochastic = False``.
    """
    return any(getattr(m, "stochastic", isinstance(m, RandomModule)) is True for m in model.modules())


@contextlib.contextmanager
def noise_from(model: nn.Module, source: NoiseSource | None) -> Iterator[None]:
    """Bind a noise source to every random layer for the length of a block."""
    layers = [m for m in model.modules() if isinstance(m, RandomModule)]
    before = [m.noise_source for m in layers]
    try:
        for m in layers:
            m.noise_source = source
        yield
    finally:
        for m, old in zip(layers, before, strict=True):
            m.noise_source = old


class Silence:
    """A source of noise that is silent: zeros, and no stream is drawn from."""

    def normal(self, like: Tensor) -> Tensor:
        """Zeros shaped like a tensor."""
        return torch.zeros_like(like)


class NoiseOff(nn.Module):
    """A random network with its noise off.

    The network is no submodule of it, so that it is not taken for random itself.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.__dict__["network"] = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        with noise_from(self.network, Silence()):
            out: Tensor = self.network(x)
        return out


def exact_of(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The network that a fast stand-in (its attribute ``exact``) was made from; None where nothing stands in.

    A stand-in gives nearly the same logits and gradients. An attack climbs on it; where the last digits decide,
    as on the decision boundary, it asks the network itself.
    """
    exact: Callable[[Tensor], Tensor] | None = getattr(model, "exact", None)
    return exact


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """A network's logits (B, K) for a copy of the images (B, C, H, W), in a tensor of their own.

    A network may write into its input, behind autograd's back, or into what it gave before.
    """
    out: Tensor = model(x.clone())
    return out.clone()


class SeesCopies(nn.Module):
    """A network asked by way of ``answer``: what it writes changes its own answer and nothing else.

    Args:
        model: the network; its modes are its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    @property
    def exact(self) -> Callable[[Tensor], Tensor] | None:
        """What ``exact_of`` looks for."""
        exact = exact_of(self.model)
        return None if exact is None else lambda x: exact(x.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        return answer(self.model, x)


def check_candidate(candidate: object, x: Tensor) -> Tensor:
    """What an attack gave, if it is images like the clean ones ``x``.

    Raises:
        ValueError: for anything else: another shape would be broadcast, another kind of number lose its meaning.
    """
    check(isinstance(candidate, Tensor), "candidate", "a tensor", type(candidate).__name__)
    assert isinstance(candidate, Tensor)
    check(
        candidate.shape == x.shape, "candidate", f"images of shape {tuple(x.shape)}", tuple(candidate.shape)
    )
    check(candidate.is_floating_point(), "candidate", "floating-point numbers", candidate.dtype)
    check(candidate.device.type == x.device.type, "candidate", f"images on {x.device}", str(candidate.device))
    return candidate


def logits_of(model: nn.Module, x: Tensor, random: SampleRandom, draws: int = 1) -> Tensor:
    """Logits (B, K) of images (B, C, H, W): the mean over ``draws`` passes when the network is random."""
    if not is_stochastic(model):
        out: Tensor = model(x)
        return out
    total: Tensor | None = None
    for streams, times in _together(x, random, draws):
        with noise_from(model, streams):
            now = _stacked(model, x, times).sum(0)
        total = now if total is None else total + now
    assert total is not None
    return total / draws


def _together(x: Tensor, random: SampleRandom, passes: int) -> Iterator[tuple[SampleRandom, int]]:
    """Groups of passes over the same images, as large as pays: their streams, and how many passes.

    A few dozen small images cost a pass little more than its layers' calls do; side by side they cost them once.
    """
    branches = random.branches(passes) if passes > 1 else None
    if branches is None:
        yield from [(random, 1)] * passes
        return
    together = max(1, min(_IMAGES // max(len(x), 1), _VALUES // max(x.numel(), 1)))
    for start in range(0, passes, together):
        part = branches[start : start + together]
        yield SampleRandom.joined(part), len(part)


def _stacked(model: nn.Module, x: Tensor, times: int) -> Tensor:
    """Logits (times, B, K) of as many passes at once."""
    if times == 1:
        one: Tensor = model(x)
        return one[None]
    out: Tensor = model(x.repeat(times, *[1] * (x.ndim - 1)))
    return out.view(times, len(x), *out.shape[1:])


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, random: SampleRandom, eot: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the per-image loss with respect to the image, by expectation over transformation (EOT).

    Args:
        model: the network, in eval mode.
        x: images (B, C, H, W).
        y: labels (B,).
        loss: maps logits and labels to one loss per image.
        random: the images' random streams.
        eot: passes to average over when the network is random (Athalye et al. 2018); 1 pass otherwise.

    Returns:
        The gradient (B, C, H, W), the mean losses (B,) and the mean logits (B, K), all detached.
    """
    random_network = is_stochastic(model)
    passes = eot if random_network else 1
    total: tuple[Tensor, Tensor, Tensor] | None = None
    for streams, times in _together(x, random, passes):
        point = x.detach().requires_grad_(True)
        bound = noise_from(model, streams) if random_network else contextlib.nullcontext()
        with torch.enable_grad(), bound:
            out = _stacked(model, point, times)
            # Pass by pass: a loss may hold something of its own for each image.
            value = torch.stack([loss(one, y) for one in out])
            (step,) = torch.autograd.grad(value.sum(), point)
        now = (step, value.detach().sum(0), out.detach().sum(0))
        total = now if total is None else (total[0] + now[0], total[1] + now[1], total[2] + now[2])
    assert total is not None
    return total if passes == 1 else (total[0] / passes, total[1] / passes, total[2] / passes)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base of all attacks: settings are the fields, calling an instance attacks a batch.

    An attack returns its best candidate for every image and judges nothing: the harness measures norms,
    box and success. A subclass writes ``run``; it may rely on 0 < eps.

    Args:
        target: ``none`` attacks the true label; ``given`` takes ``y`` as the class to reach; the others choose
            a wrong class from the clean logits (``runner_up``, ``least_likely``), by number (``next``) or at
            random (``random``) and try to reach it.
        reference: the class that ``target`` starts from: ``label``, the true one (Dinh 4.2.1); or ``prediction``, the
            network's own on the clean image (Roith 1.2: y := f(x)), whatever ``y`` says. An image then counts as broken
            when its prediction changes, and one that was misclassified is attacked, too. Not with ``given``.

    Attributes:
        weak: the attack is too weak to judge a network alone; never report its accuracy without a strong one.
        bounded: every candidate lies in the threat's ball; where False, those outside are judged as projected.
        own_set: candidates form a set of their own, such as rotations, and are judged as they are; only those that
            happen to lie in the threat's ball count for ``worst``.
        black_box: the network is only asked for its answers, never for a gradient.
        batch_dependent: the candidates of an image may depend on the other images of its batch: the batch size then
            belongs to what determines the numbers.
        tasks: what the networks that it attacks are for: ``classify``, or ``restore`` images.
    """

    weak: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    own_set: ClassVar[bool] = False
    black_box: ClassVar[bool] = False
    batch_dependent: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    target: Target = "none"
    reference: Reference = field(default="label", metadata=LATER)

    def __post_init__(self) -> None:
        check(self.target in get_args(Target), "target", f"one of {', '.join(get_args(Target))}", self.target)
        known = get_args(Reference)
        check(self.reference in known, "reference", " or ".join(known), self.reference)
        free = self.reference == "label" or (self.target != "given" and "classify" in self.tasks)
        check(free, "reference", "label where a class is given, or there are none", self.reference)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: SampleRandom | torch.Generator | None = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: the network, in eval mode, mapping (B, C, H, W) to logits (B, K).
            x: clean images in [0, 1], (B, C, H, W).
            y: labels (B,): the true ones, or the classes to reach with ``target="given"``; unused with
                ``reference="prediction"``.
            threat: norm and radius.
            generator: the images' random streams, or one generator to seed them from.

        Returns:
            Adversarial candidates (B, C, H, W), detached. With eps = 0, the clean images.

        Raises:
            ValueError: for a model in training mode, images outside [0, 1], shapes that do not fit, a threat the
                attack cannot work in, or an attack whose candidates are no images like ``x``.
        """
        if model.training:
            raise ValueError("expected a model in eval mode, got one in training mode: call model.eval()")
        check(x.ndim >= 2 and x.is_floating_point(), "x", "float images (B, C, H, W)", tuple(x.shape))
        self.check_targets(x, y)
        if x.shape[0] == 0 or threat.eps == 0:
            return x.clone()
        self.check_range(x)
        random = generator
        if not isinstance(random, SampleRandom):
            random = SampleRandom.spawn(random, x.shape[0])
        check(len(random) == x.shape[0], "generator", f"{x.shape[0]} random streams", len(random))
        self.check_threat(threat)
        seen = model if isinstance(model, SeesCopies) else SeesCopies(model)
        if self.reference == "prediction":
            y = self.predicted(seen, x, random).to(y)
        return check_candidate(self.run(seen, x.detach(), y, threat, random), x).detach()

    @abstractmethod
    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image. Arguments are checked and eps > 0."""

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError when the attack cannot work in this threat; called when a config is read, too."""

    @torch.no_grad()
    def predicted(self, model: nn.Module, x: Tensor, random: SampleRandom) -> Tensor:
        """The classes (B,) a network gives images; of a random one by the mean of ``eot`` passes."""
        exact = None if is_stochastic(model) else exact_of(model)
        if exact is not None:
            return exact(x).argmax(1)
        return logits_of(model, x, random, int(getattr(self, "eot", 1) or 1)).argmax(1)

    def check_targets(self, x: Tensor, y: Tensor) -> None:
        """Raise ValueError for a ``y`` that does not belong to such images."""
        check(y.shape == x.shape[:1], "y", f"labels of shape ({x.shape[0]},)", tuple(y.shape))

    def check_range(self, x: Tensor) -> None:
        """Raise ValueError for images (B, C, H, W) with values that there cannot be."""
        low, high = x.min().item(), x.max().item()
        check(low >= 0 and high <= 1, "x", "values in [0, 1]", (low, high))

    @property
    def passes(self) -> int:
        """Gradient passes per image at most: steps x restarts x searches x eot, of those the attack has.

        That is on a random network; another one is sent each image once where ``eot`` would average, and takes an
        ``eot``-th of them. A black-box attack has none.
        """
        if self.black_box:
            return 0
        return math.prod(int(getattr(self, n, 1) or 1) for n in ("steps", "restarts", "search_steps", "eot"))

    @property
    def cost(self) -> int:
        """Work per image at most, in forward passes: a gradient pass counts as two, a query as one.

        On a network that is not random; a random one takes ``eot`` times as much.
        """
        eot = int(getattr(self, "eot", 1) or 1)
        return 2 * (self.passes // eot) + int(getattr(self, "queries", 0))

    def aim(
        self, model: nn.Module, x: Tensor, y: Tensor, random: SampleRandom, eot: int = 1
    ) -> tuple[Tensor, bool]:
        """The class each image is pushed away from or towards: classes (B,) and whether it is "towards"."""
        if self.target in ("none", "given"):
            return y, self.target == "given"
        with torch.no_grad():
            logits = logits_of(model, x, random, eot)
        k = logits.shape[1]
        if self.target == "next":
            return (y + 1) % k, True
        if self.target == "random":
            return (y + 1 + random.integers(k - 1).to(y.device)) % k, True
        off = torch.zeros_like(logits).scatter_(1, y[:, None], math.inf)
        chosen = (logits + off).argmin(1) if self.target == "least_likely" else (logits - off).argmax(1)
        return chosen, True
