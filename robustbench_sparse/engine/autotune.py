"""How a network is attacked quickly: precision, compilation and batch size, asked for or chosen by measurement.

Verdicts are float32's on the network itself, whatever attacks climb on. A choice by measurement is made once per
machine and kept, so that the same run on the same machine takes the same path; a run's folder records what was chosen.
Training has no such choice: its precision is a setting.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
from torch import Tensor, nn

from robustbench_sparse.engine.fast import FastNetwork, Precision
from robustbench_sparse.foundation.environment import processor
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import cache_folder, read_json, write_json

AskedPrecision = Literal["auto", "fp32", "bf16"]
AskedCompile = Literal["auto", "on", "off"]
AskedEngine = Literal["auto", "dense", "shrunk"]
Engine = Literal["dense", "shrunk"]

# Multiply-accumulates, one direction. Below the first nothing is measured: a network this small, or a run this
# short (some ten seconds of two cores), is done before it pays. Below the second a compiler's half minute does not.
SMALL_WORK = 1e12
LARGE_WORK = 2e13
PLAIN_BATCH = 256
TOO_LITTLE = "too little work to measure"
PLAIN_MEMORY = (
    1.5e9  # bytes that a pass over such a batch may keep, by an estimate that is high rather than low
)
_CALIBRATION_BATCH = 64
_CHECKED_BATCH = 32  # images that a check's attack has left, about
_GAIN = 1.05  # what a choice has to gain before it is taken
_REPEATS = 3
_LONGEST_PASS_S = 1.5
_MEMORY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was chosen.

    Attributes:
        precision: of the stand-in that is attacked.
        compile: whether it is compiled.
        batch_size: images at once.
        reason: how the choice came about.
        measured: images per second of what was tried.
        engine: ``shrunk`` where attacks climb on the network without its dead channels.
        macs_left: the multiply-accumulates that this leaves, as a share.
    """

    precision: Precision = "fp32"
    compile: bool = False
    batch_size: int = PLAIN_BATCH
    reason: str = ""
    measured: dict[str, float] = field(default_factory=dict)
    engine: Engine = "dense"
    macs_left: float = 1.0

    def stand_in(
        self, model: nn.Module, x: Tensor, source: nn.Module | None = None
    ) -> tuple[FastNetwork | None, str]:
        """The network to attack, compiled for images like ``x``, or None for the network itself; and a note.

        ``source`` is the network without its dead channels, copied in its place.
        """
        if self.precision == "fp32" and not self.compile and source is None:
            return None, ""
        try:
            fast = FastNetwork(model, precision=self.precision, compile=self.compile, source=source)
            with _global_streams_kept(x.device):
                fast.warm_up(x)
                _gradient(fast, x)
        except Exception as e:  # a foreign network may not bear it; then it is attacked as it is
            return None, f"attacked in float32: {type(e).__name__}: {e}"[:200]
        return fast, fast.note


def for_attacks(
    model: nn.Module,
    x: Tensor,
    work: float,
    *,
    precision: AskedPrecision = "auto",
    compile: AskedCompile = "auto",
    batch_size: int | None = None,
) -> Speed:
    """Choose how to attack a network.

    Args:
        model: the network, in eval mode, on the device of ``x``.
        x: some test images (B, C, H, W).
        work: multiply-accumulates the attacks will take, forward only.
        precision, compile, batch_size: what was asked for; None lets the batch size be chosen.
    """
    if work < SMALL_WORK:
        return _plain(precision, compile, batch_size or _fitting(model, x))

    def measure() -> Speed:
        sample, rates = x[: min(_CALIBRATION_BATCH, _fitting(model, x))], {}
        candidates: dict[str, nn.Module] = {}
        for kind in _candidates(precision):
            candidates[kind] = FastNetwork(model, precision=kind) if kind == "bf16" else model
        rates = _rates({k: _pass(n, sample) for k, n in candidates.items()}, len(sample))
        best = _faster(rates)
        network, use = candidates[best], compile == "on"
        if compile != "off" and (use or work >= LARGE_WORK):
            fast = FastNetwork(model, precision=best, compile=True)
            fast.warm_up(sample)
            if fast.is_compiled:
                eager, quick = best, f"{best} compiled"
                rates |= _rates({eager: _pass(network, sample), quick: _pass(fast, sample)}, len(sample))
                use = use or rates[quick] > _GAIN * rates[eager]
                network = fast if use else network
        size = batch_size or _batch_size(network, x, rates)
        return Speed(precision=best, compile=use, batch_size=size, reason="measured", measured=rates)

    question = {
        "attacks": work >= LARGE_WORK,
        "precision": precision,
        "compile": compile,
        "batch": batch_size,
    }
    return _remembered(model, x, question, measure)


def recorded(path: Path, key: str, choose: Callable[[], Speed]) -> Speed:
    """The choice a run's folder records under a key; made and recorded where there is none."""
    speed = known(path, key)
    if speed is None:
        speed = choose()
        write_json(path, {**(read_json(path) if path.exists() else {}), key: dataclasses.asdict(speed)})
    return speed


def known(path: Path, key: str) -> Speed | None:
    """The choice a run's folder records under a key, if it does; UserError where the file is damaged."""
    choices: dict[str, Any] = read_json(path) if path.exists() else {}
    try:
        return Speed(**choices[key]) if key in choices else None
    except TypeError:
        raise UserError(f"{path}: damaged: {key}; delete it") from None


# Measuring ----------------------------------------------------------------------------------------------


def _plain(precision: str, compile: str, batch_size: int) -> Speed:
    free = "auto" in (precision, compile)
    return Speed(
        precision="bf16" if precision == "bf16" else "fp32",
        compile=compile == "on",
        batch_size=batch_size,
        reason=TOO_LITTLE if free else "as asked",
    )


def _candidates(precision: str) -> Sequence[Precision]:
    if precision == "auto":
        return ("fp32", "bf16")
    return ("bf16",) if precision == "bf16" else ("fp32",)


def _faster(rates: Mapping[str, float]) -> Precision:
    """bfloat16 only where it gains something, or nothing else was tried."""
    if "fp32" not in rates:
        return "bf16"
    return "bf16" if rates.get("bf16", 0.0) > _GAIN * rates["fp32"] else "fp32"


def _gradient(network: nn.Module, x: Tensor) -> Tensor:
    point = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        out: Tensor = network(point)
        (grad,) = torch.autograd.grad(out.float().logsumexp(1).sum(), point)
    return grad


def _pass(network: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: _gradient(network, x)


def _rates(tries: Mapping[str, Callable[[], object]], images: int) -> dict[str, float]:
    """Images per second of each, the median of interleaved repeats."""
    seconds: dict[str, list[float]] = {name: [] for name in tries}
    for repeat in range(_REPEATS + 1):
        for name, call in tries.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat > 0:  # the first one pays for caches
                seconds[name].append(time.perf_counter() - began)
    return {name: round(images / statistics.median(taken), 1) for name, taken in seconds.items()}


def prices(model: nn.Module, climbed: nn.Module, x: Tensor) -> dict[str, float]:
    """What an image costs in a pass, in seconds: measured once for a machine, and remembered like ``for_attacks``.

    Args:
        model: the network itself.
        climbed: what attacks climb on: the same, or its stand-in.
        x: some images (B, C, H, W), at least one.

    Returns:
        ``gradients``: in a batch, with the gradient for the image, of what is climbed on; a network that gives none
        costs three passes without. ``answers``: in a batch, without. ``alone``: of the network, one image at a time.
    """
    sample = x[:_CHECKED_BATCH]

    def measure() -> Speed:
        def ask(network: nn.Module, images: Tensor) -> Callable[[], object]:
            return lambda: _answer(network, images)

        rates = _rates({"answers": ask(climbed, sample)}, len(sample))
        rates |= _rates({"alone": ask(model, sample[:1])}, 1)
        try:
            rates |= _rates({"gradients": _pass(climbed, sample)}, len(sample))
        except Exception:  # whatever a foreign network's backward pass raises
            rates["gradients"] = rates["answers"] / 3
        return Speed(measured=rates)

    kind = f"{type(climbed).__name__} {getattr(climbed, 'precision', '')}"
    found = _remembered(model, sample, {"prices": kind, "images": len(sample)}, measure).measured
    return {name: 1 / max(rate, 1e-9) for name, rate in found.items()}


def _answer(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(x.clone())
    return out


def _batch_size(network: nn.Module, x: Tensor, rates: dict[str, float]) -> int:
    """The smallest batch that is about as fast as any tried, within a share of the memory."""
    sizes = (128, 256, 512) if x.device.type == "cpu" else (256, 512, 1024, 2048, 4096)
    bound = _free_memory(x.device) * _MEMORY_SHARE
    if x.device.type == "cpu":
        bound = min(bound, 1.25 * PLAIN_MEMORY)
    image = _bytes_per_image(network, x[:2])
    if sizes[0] * image > bound:  # large images
        return max(1, int(bound / image))
    best, best_rate = sizes[0], 0.0
    for size in sizes:
        slow = best_rate > 0 and size / best_rate > _LONGEST_PASS_S
        if size > sizes[0] and (size * image > bound or slow):
            break
        sample = x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]
        rate = _rates({"size": _pass(network, sample)}, size)["size"]
        rates[f"batch {size}"] = rate
        if rate > _GAIN * best_rate:
            best, best_rate = size, rate
    return best


def _fitting(model: nn.Module, x: Tensor) -> int:
    """The plain batch, or less where images are large: by what there is in the machine, not by what is free just now,
    so that a choice does not depend on what else runs.
    """
    try:
        with _global_streams_kept(x.device):
            image = _bytes_per_image(model, x[:1])
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except KeyboardInterrupt:
        raise
    except BaseException:  # a network without gradients, or a system that does not say: as ever
        return PLAIN_BATCH
    return int(min(PLAIN_BATCH, max(1.0, min(PLAIN_MEMORY, total / 8) / max(image, 1.0))))


def _bytes_per_image(network: nn.Module, x: Tensor) -> float:
    """What one image keeps in memory from the forward to the backward pass, beside the weights."""
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            held[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        point = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            network(point.clone())
    return 2 * sum(held.values()) / len(x)  # gradients take as much again at worst


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4e9


def _remembered(model: nn.Module, x: Tensor, question: dict[str, Any], measure: Callable[[], Speed]) -> Speed:
    """The machine's answer to a question about such a network, measured the first time it is asked."""
    shapes = [(name, list(p.shape)) for name, p in model.state_dict().items()]
    circumstances = {
        "question": question,
        "network": [str(model), shapes],
        "image": list(x.shape[1:]),
        "device": torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder(None) / "speed.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=600):
            known = _read(path)
            if key not in known:
                with _global_streams_kept(x.device):  # a random network draws while it is measured
                    known[key] = dataclasses.asdict(measure())
                write_json(path, known)
            return Speed(**{**known[key], "reason": "measured on this machine"})
    except (
        OSError,
        filelock.Timeout,
        UserError,
    ):  # no place to remember it: the run's folder still records it
        return measure()


def _global_streams_kept(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _read(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path) if path.exists() else {}
        return known if isinstance(known, dict) else {}
    except UserError:
        return {}
