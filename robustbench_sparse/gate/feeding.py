"""How a network is fed: range of the images, normalisation, colours, labels, size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_sparse.gate.base import Check, Line, Look, better, joined
from robustbench_sparse.sources.preparation import NORMALISATIONS

DARK = 0.05  # images whose largest value is smaller were divided by 255 twice
BYTES = 255.0
ENOUGH = 2  # images of a class that a matching of labels needs, on average
MATCHED = 0.4  # share of the images that a matching has to explain: a network without training reaches less
BETRAYS = 10.0  # points that a matching has to gain on images that it was not made from


def images_are_in_range(s: Look) -> Line:
    """The images' values."""
    low, high = float(s.x.min()), float(s.x.max())
    shape = " x ".join(map(str, s.x.shape[1:]))
    if not bool(s.x.isfinite().all()) or low < 0 or high > 1:
        return Line(
            "input", "stop", f"expected values in [0, 1], got {low:.4g} to {high:.4g}: divide bytes by 255"
        )
    if high < DARK:
        return Line(
            "input",
            "stop",
            f"nearly black images, {low:.4g} to {high:.4g}: divided by 255 twice? divide once",
        )
    return Line("input", "ok", f"images {shape}, values {low:.2g} to {high:.2g}")


def normalisation_is_right(s: Look) -> Line:
    """Another normalisation, or none, that the network would do clearly better with."""
    best, found = 0.0, ""
    for text, feed in _other_ways(s):
        gain = better(s, feed)
        if gain is not None and gain > best:
            best, found = gain, text
    if found:
        return Line("normalisation", "warn", f"{s.accuracy:.1f} % as it is fed, {best:+.1f} points {found}")
    return Line("normalisation", "ok", "no other one does clearly better")


def _other_ways(s: Look) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Other ways to normalise, and what to do where one is right.

    Each puts something in front of the whole network: a normalisation (where one was forgotten), its inverse (where
    there are two), or both (where it is another one's).
    """
    known = _numbers(s)
    for name, (mean, std) in known.items():
        option = f"--mean {name}" if name in NORMALISATIONS else f"--mean {joined(mean)} --std {joined(std)}"
        m, d = _shaped(mean, s.x), _shaped(std, s.x)
        yield (
            f"with {name} in front: was it forgotten? {option}",
            lambda x, m=m, d=d: (x - m) / d,  # type: ignore[misc]
        )
        yield (
            f"with {name} taken back: is it done twice? leave one of them out",
            lambda x, m=m, d=d: x * d + m,  # type: ignore[misc]
        )
    yield "with values up to 255: put a layer that multiplies by 255 into the network", lambda x: x * BYTES
    pasts = {"its own": s.front} if s.front is not None else {}
    half = torch.full_like(s.x[:1, :, :1, :1], 0.5)
    pasts |= {"half": (half, half)}
    for past, (m0, d0) in pasts.items():
        for name, (mean, std) in known.items():
            if name == past:
                continue
            m, d = _shaped(mean, s.x), _shaped(std, s.x)
            yield (
                f"with {name} in place of {past}: --mean {name if name in NORMALISATIONS else joined(mean)}, and take "
                f"{past} out",
                lambda x, m=m, d=d, m0=m0, d0=d0: (x - m) / d * d0 + m0,  # type: ignore[misc]
            )
    m1, d1 = _shaped(known["images"][0], s.x), _shaped(known["images"][1], s.x)
    yield (
        "with half in place of the images' own",
        lambda x: (x - 0.5) / 0.5 * d1 + m1,
    )


def _numbers(s: Look) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Normalisations worth trying on images of so many channels, those that are nearly alike once."""
    channels = s.x.shape[1]
    names = ("imagenet", "cifar10", "half") if channels == 3 else ("mnist", "fashion_mnist", "half")
    mean, std = s.x.mean((0, 2, 3)), s.x.std((0, 2, 3)).clamp_min(1e-3)
    return {name: NORMALISATIONS[name] for name in names} | {"images": (mean.tolist(), std.tolist())}


def _shaped(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(list(values)).view(1, -1, 1, 1)


NORMALISATION = Check(
    name="normalisation",
    asks="Does the network do clearly better with another normalisation, or without?",
    look=normalisation_is_right,
)


def labels_mean_the_same(s: Look) -> Line:
    """The one-to-one matching of predictions and labels that fits best, made on one half and tried on the other."""
    n, k = len(s.y), s.logits.shape[1]
    predicted, y = s.logits.argmax(1).cpu(), s.y.cpu()
    for text, order in _usual_orders(k, s.names):
        moved = torch.tensor(order)[predicted] == y
        if 100 * (float(moved.float().mean()) - float(s.right.float().mean())) >= BETRAYS and float(
            moved.float().mean()
        ) >= max(MATCHED, 5 / k):
            return Line("labels", "warn", f"{100 * float(moved.float().mean()):.1f} % right {text}")
    if n < ENOUGH * k:
        return Line("labels", "skipped", f"{n} images are too few to match {k} classes")
    order_of = _matching(predicted[::2], y[::2], k)
    other = order_of[predicted[1::2]] == y[1::2]
    before = predicted[1::2] == y[1::2]
    gain = 100 * (float(other.float().mean()) - float(before.float().mean()))
    if gain < BETRAYS or float(other.float().mean()) < MATCHED:
        return Line("labels", "ok", "no other order of the classes fits clearly better")
    whole = _matching(predicted, y, k)
    logit_of = torch.empty_like(whole).scatter_(0, whole, torch.arange(k)).tolist()
    differ = [(s.names[c], s.names[i]) for c, i in enumerate(logit_of) if c != i and i < len(s.names)]
    shown = ", ".join(f"{a} is answered as {b}" for a, b in differ[:3]) + (" ..." if len(differ) > 3 else "")
    cure = f"--classes {','.join(map(str, logit_of))}" if k <= 20 else "--classes puts them in order"
    return Line(
        "labels",
        "warn",
        f"the classes stand in another order ({shown}), {gain:+.1f} points with the right one: {cure}",
    )


def _matching(predicted: Tensor, y: Tensor, k: int) -> Tensor:
    """The class (k,) that each predicted one stands for, one to one, so that most images are right."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    counts = np.zeros((k, k))
    np.add.at(counts, (predicted.numpy(), y.numpy()), 1)
    counts += 1e-6 * np.eye(k)  # classes that nobody sees stay where they are
    rows, columns = linear_sum_assignment(-counts)
    order = torch.empty(k, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return order


def _usual_orders(k: int, names: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Orders of classes that are mixed up again and again: for each logit the class that it would stand for."""
    yield "with labels one larger: the network counts from 1", [(i - 1) % k for i in range(k)]
    yield "with labels one smaller: the network has a first class of its own", [(i + 1) % k for i in range(k)]
    if k > 10 and len(names) == k:
        texts = sorted(
            range(k), key=str
        )  # 0 1 10 100 ...: folders named by numbers, in the order of their names
        yield "with classes in the order of numbers as texts (0, 1, 10, ...): --classes folders", texts
        back = [0] * k
        for place, number in enumerate(texts):
            back[number] = place
        yield "with classes in the order of numbers, not of texts (0, 1, 2, ...): --classes folders", back


LABELS = Check(
    name="labels",
    asks="Do the network's logits stand in the order of the data's classes?",
    look=labels_mean_the_same,
)


def colours_are_in_order(s: Look) -> Line:
    """Images with red and blue exchanged."""
    if s.x.shape[1] != 3:
        return Line("colours", "skipped", f"images of {s.x.shape[1]} channel(s)")
    if float((s.x - s.x.flip(1)).abs().max()) < 1e-3:
        return Line("colours", "skipped", "grey images")
    gain = better(s, lambda x: x.flip(1))
    if gain is not None:
        return Line(
            "colours",
            "warn",
            f"{gain:+.1f} points with red and blue exchanged: it was trained on BGR; exchange them inside the network",
        )
    return Line("colours", "ok", "red and blue are where the network expects them")


COLOURS = Check(
    name="colours",
    asks="Does the network expect blue first?",
    look=colours_are_in_order,
)


class _Resizes(TorchFunctionMode):
    """Notes the resizing that happens within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        given = args[0] if args else (kwargs or {}).get("input")
        resizes = getattr(func, "__name__", "") == "interpolate"
        if resizes and isinstance(given, Tensor) and isinstance(out, Tensor) and out.ndim == 4:
            self.found.append((tuple(given.shape[1:]), tuple(out.shape[1:])))
        return out


def resizing_comes_first(s: Look) -> Line:
    """The size that the network was made for, and resizing inside it: what the threat's radius is measured on."""
    size, made_for = s.x.shape[-1], s.preparation.size
    with _Resizes() as seen:
        s.ask(s.x[:1])
    inside = next((b for a, b in seen.found if a == tuple(s.x.shape[1:]) and b[1:] != a[1:]), None)
    if inside is not None:
        return Line(
            "size",
            "note",
            f"the network resizes images from {size} to {inside[-1]} pixels itself: eps is of those of {size}",
        )
    if made_for is not None and made_for != size:
        crop = s.preparation.crop
        more = "" if crop is None else f" --set data.crop={crop:g}"
        return Line(
            "size",
            "warn",
            f"made for {made_for} x {made_for} pixels, and given {size} x {size}; of an image_folder: --set "
            f"data.size={made_for}{more}; eps is of the images that it is given",
        )
    return Line("size", "ok", f"{size} x {size} pixels reach the network as they are attacked")


SIZE = Check(
    name="size",
    asks="Are images resized before the threat applies, to the size that the network was made for?",
    look=resizing_comes_first,
)

INPUT = Check(
    name="input",
    asks="Do the images have values in [0, 1]?",
    look=images_are_in_range,
)
