"""Adversarials that somebody else made, held against a row's number: where they fool its network, they lower it.

Nothing of the file is believed. Its images are looked at (number, shape, finite values, box, ball around the image of
the same place) and shown to the row's own network as the judge shows its own candidates. What is broken is stored with
its images and their author, and counts in ``worst`` from then on; so any later reader can try it again.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import Threat
from robustbench_sparse.config.plugins import trust
from robustbench_sparse.exchange.images import check_images, read_images
from robustbench_sparse.exchange.row import Row, open_row
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import save_weights, sha256, write_json, write_text
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.locks import row_locked, table_locked
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.foundation.texts import to_csv
from robustbench_sparse.reporting import tables
from robustbench_sparse.runs import names
from robustbench_sparse.runs.challenges import FORMAT, MOST_AUTHOR
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import verdicts

NAME = 12  # digits of the file's hash that name a challenge


@dataclass(frozen=True, kw_only=True)
class Challenged:
    """What a file of adversarials came to.

    Attributes:
        n: images in it.
        fooled: share of them on which the row's network is wrong, clean mistakes among them.
        broken: images on which the row's verdict is lowered.
        before, after: the row's worst case in percent, and the images that it stands on then.
        stored: whether anything new is kept of it.
    """

    n: int
    fooled: float
    broken: int
    before: float
    after: float
    after_n: int
    stored: bool

    def lines(self) -> list[str]:
        """The same in words."""
        first = f"{self.n} adversarials are what they should be; the network is wrong on {100 * self.fooled:.1f} %"
        if not self.stored:
            return [first, f"none of them fools it where nothing did before: worst stays {self.before:.1f} %"]
        low, high = (100 * bound for bound in wilson(self.after / 100 * self.after_n, self.after_n))
        return [
            first,
            f"{self.broken} images that stood are broken: worst {self.before:.1f} -> {self.after:.1f} % "
            f"[{low:.1f}, {high:.1f}], of {self.after_n} images",
        ]


def challenge(
    run: Path,
    file: Path,
    author: str,
    *,
    network: str | nn.Module | None = None,
    weights: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    trust_plugins: tuple[str, ...] = (),
    show: Progress | None = None,
) -> Challenged:
    """Judge foreign adversarials of a row, and let those that fool its network lower its number.

    Args:
        run: the row's folder, judged to its end.
        file: one tensor (N, C, S, S), float in [0, 1] or bytes: an adversarial for every judged image, in the order of
            the data set, or for every test image, of which the judged ones are taken. An image that was not attacked
            stands there as it is.
        author: who made them, 1 to 100 characters; stored, and shown beside the number.
        network, weights: of a row whose network was not trained here.
        data_root, device: as for ``run_benchmark``.
        trust_plugins: modules that the stored files may name code of.
        show: where progress goes.

    Raises:
        UserError: a file that is not what it should be (nothing is judged then), or a row that cannot be opened.
    """
    author = one_line(author)
    if not 1 <= len(author) <= MOST_AUTHOR:
        raise UserError(f"--author: expected a name of 1 to {MOST_AUTHOR} characters, got {len(author)}")
    trust(trust_plugins)
    with tempfile.TemporaryDirectory() as scratch:
        row = open_row(
            run,
            Path(scratch),
            show or Silent(),
            network=network,
            weights=weights,
            data_root=data_root,
            device=device,
        )
        candidate, x, y = _candidates(row, file)
        right = _judged(row, candidate, y)
    with row_locked(
        row.folder, f"{row.place.run_id}.judging", wait=True, waits=lambda: None, changes=row.place.path
    ) as mine:
        assert mine, "it waits"
        return _settle(row, file, author, candidate, x, y, right)


def _candidates(row: Row, file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The file's adversarials of the judged images, inside the box, these images, and their labels."""
    x, y = row.clean()
    every = row.dataset.test_x
    found = read_images(file, every.numel()).to(x.device)
    if len(found) == len(every) != len(x):  # of the whole test part
        found = found[row.data.test_indices.to(x.device)]
    threat = row.plan.threat
    check_images(found, x, threat, str(file))
    return found.clamp(0, 1), x, y


def _judged(row: Row, candidate: Tensor, y: Tensor) -> Tensor:
    """Share of draws in which the row's network classifies each adversarial right, see ``Row.right``."""
    task = row.judge.show.start(f"{row.place.label} challenge", len(candidate), "images", 0)
    try:
        return row.right(candidate, y, row.data.test_indices, "judge/challenge", task.advance)
    finally:
        task.close()


def _settle(
    row: Row, file: Path, author: str, candidate: Tensor, x: Tensor, y: Tensor, right: Tensor
) -> Challenged:
    """Keep what lowers the row's verdicts as they are now, and count its table again."""
    place, digest = row.place, sha256(file)
    name = digest[:NAME]
    now = verdicts(place.path, read_manifest(row.folder))
    worst = now.columns["worst"]
    known = torch.tensor(worst.to_numpy(dtype="float64"))
    new = (right.double() < known).nonzero().flatten()
    before = float(now.counted("worst", worst).mean())
    n, fooled = len(right), 1 - float(right.double().mean())
    if not len(new) or any(c.file == digest for c in now.challenges):
        return Challenged(
            n=n, fooled=fooled, broken=0, before=100 * before, after=100 * before,
            after_n=len(now.counted("worst", worst)), stored=False,
        )  # fmt: skip
    lowered = worst.copy()
    lowered.iloc[new.tolist()] = right[new].double().tolist()
    after = now.counted("worst", lowered)
    delta = candidate[new] - x[new]
    table = pd.DataFrame(
        {
            "index": row.data.test_indices[new].tolist(),
            "label": y[new].tolist(),
            "right": right[new].double().tolist(),
            "linf": Threat(norm="linf").size(delta).tolist(),
            "l2": Threat(norm="l2").size(delta).tolist(),
        }
    )
    about = {
        "format": FORMAT,
        "author": author,
        "file": digest,
        "n": n,
        "broken": len(new),
        "before": before,
        "after": float(after.mean()),
        "key": {"identity": row.identity, "threat": dict(row.manifest["threat"])},
    }
    files = names.challenge(name)
    with place.seals.renewing(*files):
        write_text(place.path / files[1], to_csv(table, "%.9g"))
        save_weights(
            place.path / files[2], {"index": row.data.test_indices[new], "candidate": candidate[new].cpu()}
        )
        write_json(place.path / files[0], about)
    with table_locked(row.folder):
        tables.write(row.folder)
    return Challenged(
        n=n, fooled=fooled, broken=len(new), before=100 * before, after=100 * float(after.mean()),
        after_n=len(after), stored=True,
    )  # fmt: skip
