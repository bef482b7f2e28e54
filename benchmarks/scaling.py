"""Measure what a pass costs for every family of networks, and how the cost of an attack grows; docs/scaling.md."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD
from attacks.base import SampleRandom, Threat, noise_from
from benchmarks.timing import Side, interleave
from defenses import EnResNet
from defenses.robust.draws import BatchRandom
from robustbench_sparse.engine.fast import FastNetwork, FastTraining
from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.build import on_device
from robustbench_sparse.sparsity.counting import count_macs

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
THREAT = Threat(eps=8 / 255)


@dataclass(frozen=True)
class Family:
    """A family of networks as it is measured: ``batch`` images of ``channels`` x ``size`` x ``size`` at once."""

    name: str
    make: Callable[[], nn.Module]
    channels: int
    size: int
    batch: int


def _en5() -> nn.Module:
    return EnResNet(members=5).wrap(_resnet20)()


def _resnet20() -> nn.Module:
    return MODELS["preact_resnet"]().build(3, 32, 10)


FAMILIES = (
    Family("MLP 784-200-80-10", lambda: MODELS["mlp"]().build(1, 28, 10), 1, 28, 256),
    Family("LeNet", lambda: MODELS["lenet"]().build(1, 28, 10), 1, 28, 256),
    Family("convnet", lambda: MODELS["convnet"]().build(1, 28, 10), 1, 28, 256),
    Family("ResNet-20", _resnet20, 3, 32, 128),
    Family("En5ResNet-20, noise 0.1", _en5, 3, 32, 32),
    Family("ResNet-18", lambda: MODELS["resnet18"]().build(3, 32, 10), 3, 32, 32),
    Family("VGG16", lambda: MODELS["vgg16"]().build(3, 32, 10), 3, 32, 32),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and put the tables into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=PAGE, help="page whose tables are replaced")
    parser.add_argument(
        "--quick", action="store_true", help="two small families, few images: tries the script"
    )
    options = parser.parse_args(arguments)
    page = options.out.read_text() if options.out.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in page or END not in page:
        parser.error(f"{options.out}: expected the lines {BEGIN} and {END}")
    device = torch.device(options.device)
    torch.manual_seed(0)
    families = FAMILIES[:2] if options.quick else FAMILIES
    text = "\n\n".join(
        [_where(device), _passes(families, device, options.quick), _growth(device, options.quick)]
    )
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    write_text(options.out, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")
    print(text)
    return 0


# One pass ------------------------------------------------------------------------------------------------


def _passes(families: Sequence[Family], device: torch.device, quick: bool) -> str:
    rows = [_family(f, device, quick) for f in families]
    heads = [
        "network",
        "MMACs",
        "batch",
        "fp32",
        "bf16",
        "bf16 compiled",
        "best, ns per kMAC",
        "training step, bf16",
    ]
    return _table("Microseconds per image and pass (forward, and gradient for the image)", heads, rows)


def _family(family: Family, device: torch.device, quick: bool) -> list[str]:
    model = on_device(family.make(), device).eval()
    x = torch.rand(family.batch, family.channels, family.size, family.size, device=device)
    y = torch.zeros(family.batch, dtype=torch.long, device=device)
    networks: dict[str, nn.Module] = {"fp32": model, "bf16": FastNetwork(model, precision="bf16")}
    notes = ""
    if not quick:
        fast = FastNetwork(model, precision="bf16", compile=True)
        fast.warm_up(x)
        notes = fast.note and "-"
        networks["bf16 compiled"] = fast
    streams = SampleRandom.for_images(0, "noise", range(family.batch))  # as an attack draws
    sides = [_side(name, lambda _, n=n: _gradient(n, x, y, streams)) for name, n in networks.items()]
    train = FastTraining(model, precision="bf16", compile=False)
    sides.append(_side("training", lambda _: _step(train, x, y)))
    measured = interleave(sides, repeats=9, budget=60, device=device)
    each = {name: 1e6 * m.per(family.batch).median for name, m in measured.items()}
    macs = count_macs(model, family.channels, family.size)
    best = min(t for name, t in each.items() if name != "training")
    compiled = notes or (f"{each['bf16 compiled']:.1f}" if "bf16 compiled" in each else "-")
    print(f"{family.name}: {each}", file=sys.stderr)
    return [
        family.name,
        f"{macs / 1e6:.2f}",
        str(family.batch),
        f"{each['fp32']:.1f}",
        f"{each['bf16']:.1f}",
        compiled,
        f"{1e6 * best / macs:.1f}",
        f"{each['training']:.1f}",
    ]


def _side(name: str, work: Callable[[int], object]) -> Side[object]:
    return Side(name, work, lambda: work(0))


def _gradient(network: nn.Module, x: Tensor, y: Tensor, streams: SampleRandom) -> Tensor:
    network.eval()
    if not isinstance(network, FastNetwork):
        network.requires_grad_(False)
    point = x.clone().requires_grad_(True)
    with noise_from(network, streams):
        return torch.autograd.grad(F.cross_entropy(network(point), y), point)[0]


def _step(train: FastTraining, x: Tensor, y: Tensor) -> object:
    train.model.train().requires_grad_(True)
    with noise_from(train.model, BatchRandom(torch.Generator().manual_seed(0), len(x))):
        loss = F.cross_entropy(train(x), y)
    return torch.autograd.grad(loss, list(train.model.parameters()))


# An attack -----------------------------------------------------------------------------------------------


def _growth(device: torch.device, quick: bool) -> str:
    model = on_device(MODELS["preact_resnet"](depth=8).build(3, 32, 10), device).eval()
    images, steps = (64, 2) if quick else (256, 10)
    fast = FastNetwork(model, precision="bf16")
    base = {"images": images, "steps": steps, "restarts": 1}

    def seconds(network: nn.Module, **changes: int) -> float:
        s = {**base, **changes}
        x = torch.rand(s["images"], 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        y = network(x).argmax(1)
        attack = PGD(steps=s["steps"], restarts=s["restarts"], early_stop=False)
        taken = []
        for _ in range(2 if quick else 4):
            began = time.perf_counter()
            for i in range(0, len(x), 128):
                part = slice(i, i + 128)
                attack(
                    network, x[part], y[part], THREAT, SampleRandom.for_images(0, "x", range(len(y[part])))
                )
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return sorted(taken[1:])[len(taken[1:]) // 2]

    rows = []
    for name, values in (("images", (1, 2, 4)), ("steps", (1, 2, 4)), ("restarts", (1, 2, 4))):
        times = [seconds(fast, **{name: v * base[name]}) for v in values]
        rows.append(
            [name, *(f"{v * base[name]}: {t / times[0]:.2f}" for v, t in zip(values, times, strict=True))]
        )
    members = [
        EnResNet(members=n, noise=0.0).wrap(lambda: MODELS["preact_resnet"](depth=8).build(3, 32, 10))()
        for n in (1, 2, 5)
    ]
    times = [seconds(FastNetwork(on_device(m, device).eval(), precision="bf16")) for m in members]
    rows.append(
        [
            "members, without noise",
            *(f"{n}: {t / times[0]:.2f}" for n, t in zip((1, 2, 5), times, strict=True)),
        ]
    )
    noisy = [
        EnResNet(members=n).wrap(lambda: MODELS["preact_resnet"](depth=8).build(3, 32, 10))()
        for n in (1, 2, 5)
    ]
    times2 = [seconds(FastNetwork(on_device(m, device).eval(), precision="bf16")) for m in noisy]
    rows.append(
        ["members, noise 0.1", *(f"{n}: {t / times[0]:.2f}" for n, t in zip((1, 2, 5), times2, strict=True))]
    )
    shares = (0.0, 0.5, 0.9)
    times = [seconds(FastNetwork(_sparse(model, share), precision="bf16")) for share in shares]
    rows.append(
        [
            "zero channels, dense",
            *(f"{100 * s:.0f} %: {t / times[0]:.2f}" for s, t in zip(shares, times, strict=True)),
        ]
    )
    title = f"Time of PGD on ResNet-8, bf16, {images} images, {steps} steps, every image to the end; first column = 1"
    return _table(title, ["what grows", "from", "to", "to"], rows)


def _sparse(model: nn.Module, share: float) -> nn.Module:
    """The network with the first so many input channels of every convolution but the first set to zero."""
    import copy

    sparse = copy.deepcopy(model)
    convolutions = [m for m in sparse.modules() if isinstance(m, nn.Conv2d)][1:]
    with torch.no_grad():
        for conv in convolutions:
            conv.weight[:, : int(share * conv.in_channels)] = 0
    return sparse


# The page ------------------------------------------------------------------------------------------------


def _where(device: torch.device) -> str:
    facts = describe(device)
    packages = facts["packages"]
    assert isinstance(packages, dict)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return (
        f"{date}, commit {facts['commit']}, {facts['processor']}, {facts['threads']} threads, device "
        f"{facts['device']}, torch {packages['torch']}; random weights and images, seed 0; medians."
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
