"""Small things that are waited for often: an epoch on MNIST, the command line's start, reading images."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import images
from benchmarks.bench import Bench
from benchmarks.lines import Line, Target, faster
from benchmarks.timing import Spread, clock
from benchmarks.training import Turns, plan, train
from robustbench_sparse.data import PreparedData
from robustbench_sparse.models import MODELS


def mlp_epoch(bench: Bench, budget: float) -> list[Line]:
    """An epoch of the 784-200-80-10 network: our trainer, and a DataLoader loop."""
    s, device = bench.sizes, bench.device
    dataset = images.load_mnist(bench.root, s.mnist_images)
    data = PreparedData(dataset, validation=0, device=device, train_limit=s.mnist_images, test_limit=1)
    x, y = data.gather("train", torch.arange(data.count("train")))
    torch.manual_seed(0)
    model = MODELS["mlp"]().build(1, 28, 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(x.cpu(), y.cpu()), batch_size=128, shuffle=True)
    seconds: list[float] = []

    def turn(number: int) -> None:
        began = clock(device)
        for images_, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images_.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if number:  # the first turn is the warm-up
            seconds.append(clock(device) - began)

    run = plan({"name": "mlp"}, {"epochs": s.repeats + 1, "batch_size": 128}, [])
    turns = Turns(len(y), turn, device)
    train(run, data, 0, turns)
    ours, theirs = Spread.of(turns.seconds[1:]), Spread.of(seconds)
    what = f"MLP epoch, {len(y)} images, batch 128"
    note = f"{dataset.label}; SGD, the trainer's own choice of precision and compiling."
    line = faster(what, "s", ours, "DataLoader loop, fp32", theirs, note=note)
    return [_within(line, 1.0)]


def command(bench: Bench, budget: float) -> list[Line]:
    """Starting the command line for its help."""
    script = Path(sys.executable).with_name("robustbench-sparse")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "robustbench_sparse"]
    seconds = []
    for number in range(bench.sizes.starts + 1):
        began = time.perf_counter()
        subprocess.run([*start, "--help"], check=True, capture_output=True, timeout=60)
        if number:  # the first start may have files to compile and to read
            seconds.append(time.perf_counter() - began)
    return [_within(Line("robustbench-sparse --help", "s", Spread.of(seconds)), 0.5)]


def reading(bench: Bench, budget: float) -> list[Line]:
    """Reading the zip of CIFAR-10 as JPEG files, with an empty cache and from it."""
    what = "CIFAR-10 from a zip of JPEG files"
    if bench.root is None or not (bench.root / images.ZIP).is_file():
        return [Line(what, note=f"No {images.ZIP} here: not measured.")]
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(1 + bench.sizes.repeats):
            began = time.perf_counter()
            dataset = images.JPEG.load(bench.root, Path(cache))
            seconds.append(time.perf_counter() - began)
    count = len(dataset.train_y) + len(dataset.test_y)
    first = Line(f"{what}, first read", "s", Spread.of(seconds[:1]), note=f"{count} images.")
    return [_within(first, 30), _within(Line(f"{what}, cached", "s", Spread.of(seconds[1:])), 1)]


def _within(line: Line, limit: float) -> Line:
    """The same line, held against a time."""
    assert line.ours is not None
    return replace(line, target=Target("<=", limit, "s"), got=line.ours.median)
