"""A row for other benchmarks: its entry as RobustBench writes one, and the adversarials behind its number."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_sparse.config.plugins import trust
from robustbench_sparse.exchange.adversarials import worst_images
from robustbench_sparse.exchange.entry import THREATS, entry
from robustbench_sparse.exchange.images import write_images
from robustbench_sparse.exchange.row import Row, open_row
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import check_free, plain, write_json
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.reporting.leaderboard import tabulate

FORMATS = ("robustbench",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
# Of the leaderboard's row, what stands under our key.
KEPT = (
    "benchmark", "run", "seed", "n", "worst", "worst_lo", "worst_hi", "worst_n", "clean_lo", "clean_hi", "verdict",
    "flags", "protocol", "weight_sparsity", "channel_sparsity", "parameters", "nonzero_parameters", "macs", "run_id",
    "commit",
)  # fmt: skip


def export(
    run: Path,
    out: Path,
    *,
    form: str = "robustbench",
    name: str | None = None,
    about: Mapping[str, Any] | None = None,
    adversarials: bool = True,
    force: bool = False,
    network: str | nn.Module | None = None,
    weights: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    trust_plugins: tuple[str, ...] = (),
    show: Progress | None = None,
) -> list[Path]:
    """Write ``OUT/model_info/<data>/<threat>/<name>.json``, as in RobustBench's repository, and the images beside.

    The images are a plain tensor (n, C, S, S), float32 in [0, 1], one for each judged image in the order of the data
    set, readable with ``torch.load(..., weights_only=True)``. They are made again (``adversarials.worst_images``); what
    the network keeps on them stands in the entry beside ``worst``.

    Args:
        run: the row's folder, judged to its end.
        out: folder that is written to.
        form: ``robustbench``.
        name: of the files; None takes the row's label.
        about: what only people know, by keys of ``entry.ABOUT``.
        adversarials: write the images, too.
        force: write over files that are there.
        network, weights, data_root, device, trust_plugins, show: as for ``challenge``.

    Returns:
        The files.

    Raises:
        UserError: another format, a row without AutoAttack or with gaps, or files that are there.
    """
    if form not in FORMATS:
        raise UserError(f"--format: expected {', '.join(FORMATS)}, got {form!r}{near(form, FORMATS)}")
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
        chosen = name or row.place.label
        if not NAME.fullmatch(chosen):
            raise UserError(f"--name: expected letters, digits and any of . _ + -, got {chosen!r}")
        facts = _facts(row)
        place = out / "model_info" / facts["data"] / THREATS[row.plan.threat.norm]
        files = [place / f"{chosen}.json", *([place / f"{chosen}.pt"] if adversarials else [])]
        check_free(files, force)
        table = tabulate(row.folder, [row.place.label])
        line = plain(table[table["run_id"] == row.place.run_id].iloc[0].to_dict())
        ours = {**facts, **{k: v for k in KEPT if (v := line.get(k)) is not None and v == v}}
        written = entry(line, row.manifest, about or {}, ours)  # before anything is attacked
        if adversarials:
            images, right = worst_images(row)
            written["robustbench_sparse"]["adversarials"] = {
                "file": files[1].name,
                "n": len(images),
                "accuracy": round(100 * float(right.double().mean()), 4),
                **({"without": row.without} if row.without else {}),
            }
            write_images(files[1], images)
        write_json(files[0], _numbers(written))
    return files


def _facts(row: Row) -> dict[str, Any]:
    data = row.plan.dataset_name
    return {
        "data": re.sub(r"[^A-Za-z0-9_.-]", "_", data),
        "dataset": row.dataset.label,
        "threat": dict(row.manifest["threat"]),
        "attacks": row.manifest["settings"],
        "draws": row.judge.draws,
        "credits": [{"author": c.author, "broken": c.broken, "of": c.n} for c in row.found.challenges],
    }


def _numbers(value: Any) -> Any:
    """Values as JSON has them: numpy's and pandas' numbers become Python's."""
    if isinstance(value, Mapping):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    return value.item() if hasattr(value, "item") else value
