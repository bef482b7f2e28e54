"""Images on a run's page: clean, adversarial and their difference, with what the network says before and after.

The adversarials are those that the certificate's checks kept; the network is read back and asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import load_weights
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.boards import Entry
from robustbench_sparse.pages.drawings import single, trio
from robustbench_sparse.reporting.figures.networks import passed
from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import read_certificate
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.rebuild import has_recipe, stored_plan


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One image: its position in the data set, class, prediction and confidence in percent before and after; a PNG."""

    index: int
    label: str
    before: str
    before_share: float
    after: str
    after_share: float
    distance: str
    png: bytes = field(repr=False)


@dataclass
class Images:
    """The data sets of a report's rows, each read once; ``root`` is their folder."""

    root: Path | None = None
    _known: dict[str, Dataset | str] = field(default_factory=dict)

    def of(self, folder: Path) -> Dataset:
        """The data set that a run was trained on.

        Raises:
            UserError: it is not here, another one than at training, or the run does not say which it was.
        """
        if not has_recipe(folder):
            raise UserError("the network was not trained here, and its record does not name the data set")
        plan, record = stored_plan(folder), RunFolder.at(folder).facts["record"]
        key = f"{record['data']} {record.get('fingerprint')}"
        if key not in self._known:
            try:
                found = load_dataset(plan.dataset, self.root)
                same = record.get("fingerprint") in (None, found.fingerprint)
                self._known[key] = (
                    found if same else "the images here are other ones than those of the training"
                )
            except UserError as e:
                self._known[key] = one_line(e)
        kept = self._known[key]
        if isinstance(kept, str):
            raise UserError(kept)
        return kept

    def thumbnail(self, folder: Path, index: int) -> bytes:
        """A test image as a PNG; UserError as for ``of``."""
        return single(self.of(folder).test_x[index].numpy() / 255.0)


def gallery_of(entry: Entry, images: Images, count: int) -> list[Exhibit]:
    """The first images that the certificate's checks broke, then others that they tried; at most ``count``.

    Raises:
        UserError: one line, why there is none.
    """
    folder = entry.folder
    if folder is None or not entry.manifest:
        raise UserError(
            "adversarial images are kept with a benchmark's outcomes, which are not part of this report"
        )
    certificate = read_certificate(folder, entry.manifest)
    if not certificate.checks:
        raise UserError("adversarial images are kept by a certificate: run with --certificate quick")
    run = RunFolder.at(folder)
    run.seals.check(names.ADVERSARIALS)
    kept = load_weights(folder / names.ADVERSARIALS)
    if "index" not in kept or not len(kept["index"]):
        raise UserError("no check found an adversarial that the attacks had missed")
    dataset = images.of(folder)
    index = kept["index"].long()
    order = sorted(range(len(index)), key=lambda i: certificate.found.get(int(index[i]), 1.0))[:count]
    chosen = index[order]
    clean = dataset.test_x[chosen].float() / 255.0
    adversarial = kept["candidate"][order].float().reshape(clean.shape)
    model = run.network(dataset.channels, dataset.size, len(dataset.classes))
    before, after = (_answers(model, x, run.seed) for x in (clean, adversarial))
    out = []
    for i, place in enumerate(map(int, chosen)):
        gap = adversarial[i] - clean[i]
        out.append(
            Exhibit(
                index=place,
                label=_name(dataset, int(dataset.test_y[place])),
                before=_name(dataset, before[i][0]),
                before_share=before[i][1],
                after=_name(dataset, after[i][0]),
                after_share=after[i][1],
                distance=f"l∞ {gap.abs().max():.3g}, l2 {gap.norm():.3g}",
                png=trio(clean[i].numpy(), adversarial[i].numpy()),
            )
        )
    return out


def _answers(model: Any, x: Tensor, seed: int) -> list[tuple[int, float]]:
    """Class and confidence in percent of every image."""
    shares = torch.softmax(passed(model, x, seed).double(), dim=1)
    best = shares.max(dim=1)
    return [(int(c), 100 * float(s)) for c, s in zip(best.indices, best.values, strict=True)]


def _name(dataset: Dataset, label: int) -> str:
    return printable(dataset.classes[label]) if 0 <= label < len(dataset.classes) else str(label)


def class_names(entry: Entry, images: Images) -> Sequence[str]:
    """Names of the classes, where the data set is here; none else."""
    try:
        return images.of(entry.folder).classes if entry.folder is not None else ()
    except UserError:
        return ()
