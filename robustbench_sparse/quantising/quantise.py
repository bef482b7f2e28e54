"""From a network to its file in int8: calibrate, round, write, attack, measure.

Dinh, chapter 5, promises that a network shrunk by a factor of three is twelve times smaller with 8-bit weights. Here
both factors are measured, and whether what was robust still is.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks import ATTACKS
from attacks.base import is_stochastic
from attacks.transfer import NOISE_OFF
from defenses.base import prunable
from defenses.robust.quantise import RoundedLayer
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import from_file
from robustbench_sparse.config.schema import NetworkConfig
from robustbench_sparse.config.suites import SUITES
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import check_free, write_atomically, write_json
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.quantising.judged import Networks, judged
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.targets import Target, data_of, resolve_target
from robustbench_sparse.shrinking import PROOF_IMAGES, proven
from robustbench_sparse.sparsity.counting import count_sparsity
from robustbench_sparse.sparsity.quantise.int8_file import check_installed, contents, quantised
from robustbench_sparse.sparsity.quantise.onnx_network import OnnxNetwork
from robustbench_sparse.sparsity.shrink.measure import BATCHES, latency
from robustbench_sparse.sparsity.shrink.onnx_file import exported, without_noise
from robustbench_sparse.sparsity.shrink.surgery import shrink_network

CALIBRATION = 512  # training images that activations are calibrated on
# What the network in int8 is attacked by without any gradient, whatever else is asked for.
SQUARE = "square500"


def quantise(
    target: str | Path,
    out: Path,
    *,
    weights: str | Path | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    changes: Sequence[str] = (),
    shrink: bool = False,
    attacks: Sequence[str] | None = None,
    suite: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    calibration: int = CALIBRATION,
    force: bool = False,
    show: Progress | None = None,
) -> dict[str, Any]:
    """Quantise a network to int8, write its file, and judge it on the images of attacks.

    Args:
        target, weights: see ``targets.resolve_target``.
        out: the ONNX file; a report goes beside it as ``.json``, the verdicts on every image as ``.csv``.
        dataset, data_root, changes: see ``targets.data_of``.
        shrink: remove dead channels first.
        attacks: names of attacks; suite: a named list of them. Without either those of the run's benchmark, or the
            suite ``standard``. Where none of them does without gradients, Square with 500 queries is added.
        norm, eps: the threat; a run knows its own, else l_inf and 8/255.
        seed: of the calibration's choice of images and of the attacks.
        limit: judge only so many test images.
        calibration: training images that the activations' ranges are taken from, >= 1.
        force: write over files that are there.
        show: where progress goes.

    Returns:
        The report, plain values.

    Raises:
        UserError: bad arguments, or a network that cannot be quantised. Nothing has been written then.
    """
    files = [out, out.with_suffix(".json"), out.with_suffix(".csv")]
    _check_files(files, force)
    check_installed()
    if calibration < 1:
        raise UserError(f"--calibration: expected a number >= 1, got {calibration}")
    found = resolve_target(target, weights, data_root)
    images = data_of(found, dataset, data_root, changes)
    if images is None:
        raise UserError("--dataset: expected the data set whose training images the network is calibrated on")
    if "task" in found.record.get("run", {}).get("record", {}):
        raise UserError(f"{target}: expected a network that classifies, got one that restores images")
    if not prunable(found.model):
        raise UserError(
            f"{target}: expected a network of convolutions and linear layers, got one without any"
        )
    if any(isinstance(m, RoundedLayer) for m in found.model.modules()):
        raise UserError(
            f"{target}: expected a network in float32, got one that the defense quantise has rounded"
        )
    notes: list[str] = []
    own = attacks is None and suite is None
    with from_file() if own else contextlib.nullcontext():
        plan = _plan(found, _attacks(found, attacks, suite, notes), norm, eps, limit)
    if is_stochastic(found.model):
        notes.append(
            "the network is random: its noise is off in the file, and in the float network beside it"
        )
    data = plan.prepare(images, torch.device("cpu"))
    generator = torch.Generator().manual_seed(derive(seed, "calibration"))
    if data.count("train") == 0:
        raise UserError(f"{images.label}: expected training images to calibrate on, got a test part alone")
    chosen = data.images("train", min(calibration, data.count("train")), generator)
    networks = _made(found, images, chosen, shrink, notes)
    table, rates = judged(networks, plan, images, data, seed, show or Silent(), notes)
    x = images.test_x[: max(BATCHES)].float() / 255
    report = {
        "target": str(target),
        "file": str(out),
        "threat": plan.config.threat.model_dump(),
        "seed": seed,
        "calibration": len(chosen),
        "shrunk": shrink,
        "size": _sizes(found, networks, data),
        **rates,
        "latency": _latencies(networks, x),
        "notes": notes,
    }
    write_atomically(files[2], partial(table.to_csv, index=False))
    write_atomically(out, lambda f: f.write(networks.int8_graph))
    write_json(files[1], report)
    return report


def _check_files(files: Sequence[Path], force: bool) -> None:
    if files[0].suffix != ".onnx":
        raise UserError(f"--output: expected a name that ends in .onnx, got {files[0]}")
    if not files[0].parent.is_dir():
        raise UserError(f"--output: {files[0].parent}: no such folder")
    check_free(files, force)


# What to attack with -----------------------------------------------------------------------------------------


def _attacks(
    found: Target, attacks: Sequence[str] | None, suite: str | None, notes: list[str]
) -> dict[str, dict[str, Any]]:
    """Label -> config entry."""
    chosen: dict[str, dict[str, Any]]
    if attacks is not None:
        if suite is not None:
            raise UserError("--attacks and --suite: expected one of them, got both")
        chosen = {name.replace(":", "_").replace(".", "_"): {"name": name} for name in attacks}
    elif suite is not None:
        if suite not in SUITES:
            raise UserError(f"--suite: expected one of {', '.join(SUITES)}, got {suite!r}")
        chosen = dict(SUITES[suite])
    else:
        chosen = _benchmarks(found, notes) or dict(SUITES["standard"])
    if not any(getattr(ATTACKS.get(entry["name"]), "black_box", False) for entry in chosen.values()):
        chosen[SQUARE] = {"name": "square", "queries": 500}
    return chosen


def _benchmarks(found: Target, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The attacks of the benchmark that a run belongs to; empty where there is none."""
    if found.weights is None or not (found.weights.parent.parent.parent / names.BENCHMARK).is_file():
        return {}
    settings: Mapping[str, Any] = read_manifest(found.weights.parent.parent.parent)["settings"]
    kept = {k: v for k, v in settings.items() if v.get("source", NOISE_OFF) == NOISE_OFF}
    notes += [f"{k} is left out: it is made on another row" for k in settings if k not in kept]
    return kept


def _plan(
    found: Target,
    attacks: Mapping[str, Any],
    norm: str | None,
    eps: float | None,
    limit: int | None,
) -> Plan:
    """What the networks are judged by."""
    threat: dict[str, Any] = {"norm": norm or found.norm or "linf"}
    radius = eps if eps is not None else found.eps if norm in (None, found.norm) else None
    threat |= {} if radius is None else {"eps": float(radius)}
    own = {k: dict(entry) for k, entry in attacks.items()}
    if norm is not None or eps is not None:  # what was asked for holds for every attack
        own = {k: {name: v for name, v in entry.items() if name != "threat"} for k, entry in own.items()}
    # The images are loaded already: the plan cuts them as they come, whatever data set it names.
    raw = {"name": "quantise", "data": "digits", "threat": threat, "attacks": own}
    return resolve({**raw, "evaluation": {"limit": limit}}, name="quantise", schema=NetworkConfig)


# Making --------------------------------------------------------------------------------------------------


def _made(found: Target, images: Dataset, calibration: Tensor, shrink: bool, notes: list[str]) -> Networks:
    x = images.test_x[:PROOF_IMAGES].float() / 255
    small = found.model
    if shrink:
        shrunk = shrink_network(found.model, x)
        proven(found.model, shrunk, x)
        small = shrunk.model
        notes += list(shrunk.notes) if shrunk.removed else ["no dead channels were found"]
    try:
        graph = exported(small, x)
    except UserError as e:  # there it is an option
        raise UserError(str(e).removeprefix("--onnx: ")) from None
    int8 = quantised(graph, calibration)
    return Networks(
        source=found.model, float32=without_noise(small).eval(), float_graph=graph, int8_graph=int8
    )


def _sizes(found: Target, networks: Networks, data: PreparedData) -> dict[str, Any]:
    """Weights and bytes before and after."""
    before = count_sparsity(networks.source, data.channels, data.size)
    after = count_sparsity(networks.float32, data.channels, data.size)
    state = {k: v for k, v in networks.source.state_dict().items() if v.is_floating_point()}
    tensors = b"".join(v.detach().cpu().contiguous().numpy().tobytes() for v in state.values())
    return {
        "parameters": before["parameters"],
        "nonzero_parameters": before["nonzero_parameters"],
        "weight_sparsity": before["weight_sparsity"],
        "parameters_quantised": after["parameters"],
        "weights_file": None if found.weights is None else found.weights.stat().st_size,
        "float_tensors": len(tensors),
        "float_packed": len(zlib.compress(tensors, 9)),
        "float_onnx": contents(networks.float_graph),
        "int8_onnx": contents(networks.int8_graph),
    }


def _latencies(networks: Networks, x: Tensor) -> list[dict[str, Any]]:
    """Milliseconds per batch on the CPU: torch's float network, and both files by onnxruntime."""
    threads = torch.get_num_threads()
    every = (networks.source, OnnxNetwork(networks.float_graph, threads=threads), networks.int8())
    rows = []
    for size in BATCHES:
        seconds = latency(every, x.repeat(-(-size // len(x)), 1, 1, 1)[:size], torch.device("cpu"))
        times = dict(zip(("torch_ms", "float_ms", "int8_ms"), (1000 * s for s in seconds), strict=True))
        rows.append({"batch": size, "threads": threads, **times})
    return rows
