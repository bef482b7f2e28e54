"""A run's page: everything that its folder says, as plain facts for the template, and the images beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.texts import printable, printable_lines
from robustbench_sparse.pages.gallery import Exhibit, Images, class_names, gallery_of
from robustbench_sparse.pages.network_page import NetworkView, network_view
from robustbench_sparse.pages.outcome_page import Confusion, confusions_of
from robustbench_sparse.pages.rows import Row
from robustbench_sparse.pages.verdict_store import Flips, Sight, flips_of, parent_of
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """What a run's page shows.

    Attributes:
        row: the row.
        config: what determined its weights, as YAML.
        environment: name -> text, of the training.
        exhibits: images; ``no_exhibits`` says why there are none.
        confusions: by outcome.
        flips: against other rows; the first is the dense ``parent``, where there is one.
        network: layers and filters; None where ``no_network`` says why.
        thumbnails: positions of the images that differ from the dense parent, and their PNGs.
    """

    row: Row
    config: str
    environment: Mapping[str, str]
    exhibits: Sequence[Exhibit]
    no_exhibits: str
    confusions: Sequence[Confusion]
    flips: Sequence[Flips]
    parent: Row | None
    network: NetworkView | None
    no_network: str
    thumbnails: Sequence[tuple[int, bytes]]

    @property
    def pictures(self) -> dict[str, bytes]:
        """Files beside the page: name -> PNG."""
        found = {f"image-{e.index}.png": e.png for e in self.exhibits}
        found |= {f"test-{index}.png": png for index, png in self.thumbnails}
        return found | (
            {"filters.png": self.network.filters} if self.network and self.network.filters else {}
        )


def run_page(
    row: Row, rows: Sequence[Row], sights: Mapping[str, Sight], images: Images, count: int
) -> RunPage:
    """Read a run's folder for its page.

    Args:
        row: with a folder.
        rows: all of the report.
        sights: verdicts of every image, see ``verdict_store``.
        images: the data sets.
        count: images in the gallery at most.
    """
    folder = row.entry.folder
    if folder is None:
        raise ValueError("expected a row with a folder")
    seals = Seals(folder)
    seals.check(names.RUN)
    facts = read_json(folder / names.RUN)
    environment = read_json(folder / names.ENVIRONMENT) if seals.holds(names.ENVIRONMENT) else {}
    exhibits: Sequence[Exhibit] = ()
    network, no_exhibits, no_network = None, "", ""
    try:
        exhibits = gallery_of(row.entry, images, count) if count else ()
    except UserError as e:
        no_exhibits = one_line(e)
    try:
        network = network_view(folder)
    except UserError as e:
        no_network = one_line(e)
    flips, parent = flips_of(row, rows, sights), parent_of(row, rows)
    return RunPage(
        row=row,
        config=printable_lines(
            yaml.safe_dump(facts.get("record") or facts, sort_keys=False, allow_unicode=True)
        ),
        environment={printable(k): printable(_text(v)) for k, v in environment.items()},
        exhibits=exhibits,
        no_exhibits=no_exhibits,
        confusions=confusions_of(row.entry, class_names(row.entry, images)),
        flips=flips,
        parent=parent,
        network=network,
        no_network=no_network,
        thumbnails=_differences(row, flips, parent, images),
    )


def _differences(
    row: Row, flips: Sequence[Flips], parent: Row | None, images: Images
) -> list[tuple[int, bytes]]:
    """The first images that the dense parent withstands and the row does not, where the data set is here."""
    if parent is None or not flips or flips[0].other is not parent or row.entry.folder is None:
        return []
    try:
        return [(index, images.thumbnail(row.entry.folder, index)) for index in flips[0].first]
    except (UserError, IndexError):
        return []


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)
