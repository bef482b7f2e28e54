"""Stored adversarials judged anew: in a process of its own, on the network rebuilt from its run's folder.

``python -m robustbench_sparse.certificate.probes.replay REQUEST.json`` is that process. It reads no data set: all it
needs is the folder, the images and their labels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attacks.base import Threat
from attacks.losses import margin
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.plugins import look_in, places, trust, trusted
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.foundation.processes import command, environment, last_words
from robustbench_sparse.models.build import on_device
from robustbench_sparse.runs.folder import RunFolder

SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What the other process says.

    Attributes:
        correct: share of draws classified correctly, in [0, 1], (n,).
        margin: of one pass: the largest wrong logit minus the label's, (n,).
    """

    correct: Tensor
    margin: Tensor


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked of the other process; images and labels are in the file ``images``."""

    run: str
    images: str
    answer: str
    classes: int
    seed: int
    draws: int
    name: str
    index: list[int]
    threads: int
    device: str
    trusted: list[str]
    places: list[str]


def replay(s: Subject, folder: Path, candidate: Tensor, name: str) -> Replayed:
    """Judge a candidate of each image in a process of its own; the noise's stream is ``judged``'s of the same name.

    Raises:
        UserError: the process failed, or took longer than 300 s.
    """
    with tempfile.TemporaryDirectory() as scratch:
        images, answer, asked = (Path(scratch) / n for n in ("x.safetensors", "y.safetensors", "asked.json"))
        save_file({"x": candidate.cpu().contiguous(), "y": s.y.cpu().contiguous()}, images)
        request = _Request(
            run=str(folder.absolute()),
            images=str(images),
            answer=str(answer),
            classes=s.classes,
            seed=s.seed,
            draws=s.draws,
            name=name,
            index=[int(i) for i in s.index],
            threads=torch.get_num_threads(),  # sums of as many parts round alike
            device=s.x.device.type,
            trusted=trusted(),
            places=places(),
        )
        write_json(asked, asdict(request))
        try:
            done = subprocess.run(
                command("robustbench_sparse.certificate.probes.replay", str(asked)),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=environment(),
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the other process took longer than {SECONDS} s") from None
        if done.returncode != 0:
            raise UserError(f"the other process failed: {last_words(done.stderr, done.returncode)}")
        found = load_file(answer)
    return Replayed(correct=found["right"], margin=found["margin"])


def margins(s: Subject, x: Tensor, name: str) -> Tensor:
    """The largest wrong logit minus the label's, of one pass, (n,)."""
    return margin(s.logits(x, s.random(f"{name}/margin")), s.y)


def main(request_path: Path) -> None:
    """Answer one request."""
    request = _Request(**read_json(request_path))
    torch.set_num_threads(request.threads)
    trust(request.trusted)
    look_in(request.places)
    on_gpu = request.device == "cuda" and torch.cuda.is_available()
    device = choose_device("cuda" if on_gpu else "cpu")
    given = load_file(Path(request.images))
    x, y = given["x"].to(device), given["y"].to(device)
    model = on_device(
        RunFolder.at(Path(request.run)).network(x.shape[1], x.shape[2], request.classes), device
    )
    s = Subject(
        model,
        x,
        y,
        torch.tensor(request.index),
        Threat(),  # nothing is attacked here
        classes=request.classes,
        seed=request.seed,
        budget=BUDGETS["quick"],
    )
    correct = s.judged(x, request.name, draws=request.draws)
    answer = {"right": correct.cpu(), "margin": margins(s, x, request.name).cpu()}
    save_file({name: values.contiguous() for name, values in answer.items()}, Path(request.answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
