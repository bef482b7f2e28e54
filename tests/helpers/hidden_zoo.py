"""The hidden zoo: networks that look robust to an evaluation and are not for the one who uses them.

An ordinary user loads the network from its file, reads one image after another from files of 8-bit pixels, and asks
for its class: in eval mode, one image at a time, without gradients. ``HIDDEN`` holds what makes each network;
``use`` asks as a user does, and ``true_accuracy`` says how an outsider's adversarial images fare there.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attacks import PGD, Attack, SampleRandom, Square, Threat
from tests.helpers import hidden_accidents as accidents
from tests.helpers import hidden_looks as looks
from tests.helpers import hidden_states as states
from tests.helpers.hidden_base import Hidden, Make, bits

HIDDEN: dict[str, Make] = {
    # State that changes by being asked.
    "neighbours_memory": states.NeighboursMemory,
    "budget_per_image": states.BudgetPerImage,
    "counter": states.Counter,
    "copies_behave": states.CopiesBehave,
    "shared_state": states.SharedState,
    "closure": states.closure,
    "drift": states.Drift,
    "rate_limit": states.RateLimit,
    "once_differentiated": states.OnceDifferentiated,
    "saved_file": states.SavedFile,
    # The way of asking.
    "batch_size": looks.BatchSize,
    "batch_composition": looks.BatchComposition,
    "storage": looks.Storage,
    "grad_mode": looks.GradMode,
    "callers": looks.Callers,
    "imported_tools": looks.ImportedTools,
    "command_line": looks.CommandLine,
    # Marks in the image.
    "off_grid": looks.OffGrid,
    "checksum": looks.Checksum,
    "dead_pixels": looks.DeadPixels,
    "saturated": looks.Saturated,
    "rough": looks.Rough,
    # By accident.
    "perceptual_cache": states.PerceptualCache,
    "temporal_smoothing": states.TemporalSmoothing,
    "second_opinion": accidents.SecondOpinion,
    "hard_labels": accidents.HardLabels,
    "reversed_gradient": accidents.ReversedGradient,
    "rounded_percent": accidents.RoundedPercent,
    "nearest_image": accidents.NearestImage,
    "meansparse": accidents.MeanSparse,
    "kwta": accidents.KWTA,
}


def shipped(net: nn.Module) -> nn.Module:
    """The network as a user has it: written to a file and read again, or itself where it cannot be written."""
    try:
        return pickle.loads(pickle.dumps(net))  # type: ignore[no-any-return]
    except (AttributeError, pickle.PicklingError):  # a function within a function has no place in a file
        return net


def use(net: nn.Module, image: Tensor) -> int:
    """The class that an ordinary user is told of one image (C, S, S) from an 8-bit file."""
    time.sleep(getattr(net, "pause", 0.0))
    picture = (bits(image).float() / 255)[None].clone()
    with _users_program(), torch.no_grad():
        return int(net.eval()(picture).argmax())


@contextlib.contextmanager
def _users_program() -> Iterator[None]:
    """A process that has imported no evaluation and is called by no evaluation's name."""
    hidden = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in looks.TOOLS}
    argv = sys.argv
    try:
        sys.argv = ["photos.py"]
        for name in hidden:
            del sys.modules[name]
        yield
    finally:
        sys.modules.update(hidden)
        sys.argv = argv


def used(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Which images (B, C, S, S) a fresh network classifies right when used one by one; bool (B,)."""
    net = shipped(make())
    return torch.tensor([use(net, image) for image in x]) == y


def to_grid(adversarial: Tensor, x: Tensor, eps: float) -> Tensor:
    """Adversarial images rounded to 8 bits, not further than eps from 8-bit images ``x``, in [0, 1]."""
    reach, clean = int(eps * 255 + 1e-6), bits(x)
    rounded = torch.minimum(torch.maximum(bits(adversarial), clean - reach), clean + reach)
    return rounded.clamp(0, 255).float() / 255


def climb(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    random: torch.Generator,
    *,
    mask: Tensor | None = None,
    coarse: bool = False,
) -> Tensor:
    """PGD-100 on the cross-entropy, which changes only pixels where ``mask`` is 1.

    ``coarse``: the perturbation is drawn out from half the resolution, and so is smooth.
    """
    side = -(-x.shape[-1] // 2) if coarse else x.shape[-1]
    delta = eps * (2 * torch.rand(len(x), x.shape[1], side, side, generator=random) - 1)
    mask = torch.ones_like(x[0]) if mask is None else mask

    def image(d: Tensor) -> Tensor:
        wide = nn.functional.interpolate(d, x.shape[2:], mode="bilinear") if coarse else d
        free = x + mask * wide
        # The gradient passes the box's walls: what was pushed against one may come back.
        return free + (free.clamp(0, 1) - free).detach()

    for _ in range(100):
        delta.requires_grad_(True)
        loss = nn.functional.cross_entropy(net(image(delta)), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + eps / 20 * grad.sign()).clamp(-eps, eps)
    return image(delta).detach().clamp(0, 1)


def outsiders(
    base: nn.Module, x: Tensor, y: Tensor, eps: float, dead: Tensor, *, seed: int = 0
) -> list[Tensor]:
    """Adversarial images on the 8-bit grid, made on a network that the outsider has the weights of.

    PGD-100, three restarts, at full strength; a step of the grid weaker; without the pixels ``dead`` (C, S, S); and
    smooth.
    """
    random = torch.Generator().manual_seed(seed)
    attack = PGD(steps=100, restarts=3, early_stop=False)
    streams = SampleRandom.for_images(seed, "outsider", range(len(x)))
    strong = attack(base, x, y, Threat(eps=eps), streams)
    found = [
        strong,
        climb(base, x, y, eps - 1 / 255, random),
        climb(base, x, y, eps, random, mask=(~dead).to(x)),
        climb(base, x, y, eps, random, coarse=True),
    ]
    return [to_grid(adversarial, x, eps) for adversarial in found]


def true_accuracy(
    make: Callable[[], nn.Module],
    made: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    dead: Tensor,
    *,
    seed: int = 0,
) -> float:
    """Accuracy, in percent, that users have left when an outsider may choose the images.

    Args:
        make: gives a fresh network; each set of adversarial images meets one of its own, one image at a time.
        made: the sets that ``outsiders`` made on the plain network; a network that names surrogates is attacked by
            way of these instead.
        x, y: clean images (B, C, S, S) on the 8-bit grid, and labels (B,).
        eps: radius in l_inf.
        dead: pixels that no training image uses, bool (C, S, S).
        seed: of the attacks.
    """
    net = make()
    surrogates = net.surrogates() if isinstance(net, Hidden) else []
    own = [images for s in surrogates for images in outsiders(s, x, y, eps, dead, seed=seed)]
    right = used(make, x, y)
    for images in own or made:
        finished = net.finish(images, x) if isinstance(net, Hidden) else images
        rows = right.nonzero().flatten()
        if len(rows):
            right[rows] = used(make, finished[rows], y[rows])
    return 100 * float(right.float().mean())


def naive(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, *, queries: int = 500, seed: int = 0
) -> dict[str, float]:
    """What an evaluation without any check says, in percent: clean, under PGD-50, under Square, the worst of all.

    Images are attacked in one batch, and candidates put to the network as they are.
    """
    attacks: dict[str, Attack] = {"pgd50": PGD(steps=50), "square": Square(queries=queries)}
    with torch.no_grad():
        worst = net(x.clone()).argmax(1) == y
    rates = {"clean": 100 * float(worst.float().mean())}
    for name, attack in attacks.items():
        streams = SampleRandom.for_images(seed, name, range(len(x)))
        candidates = attack(net, x.clone(), y, Threat(eps=eps), streams)
        with torch.no_grad():
            right = net(candidates).argmax(1) == y
        rates[name] = 100 * float(right.float().mean())
        worst = worst & right
    return {**rates, "worst": 100 * float(worst.float().mean())}
