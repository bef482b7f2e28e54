"""The tables of ``docs/results``: made from the committed references, as a comment in the page above each says.

    <!-- table: begin
    reference: mnist_clip
    title: row
    columns: {clean: clean, worst: worst ±}
    rows: {none_sigmoid: "none, sigmoid outputs"}
    -->
    ...
    <!-- table: end -->

``columns`` gives every title what stands below it: a column of the leaderboard, or ``100-COLUMN``, with any of ``±``
(deviation over the seeds; of one seed its 95 % interval), ``()`` (the published value), ``.2f`` (a format), ``#1`` (of
that seed), ``vs:RUN`` (the difference to another row: mean of the seeds' differences with Student's 95 % interval),
``each`` (every seed), ``text`` (as it is). Two of these go with `` / `` or `` at `` between; ``@90`` in front puts 90
for ``{}`` in the row's label, and ``at`` behind says how many zeros there are where these are others. A list holds what
is not in a leaderboard, such as numbers counted from single images' verdicts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from robustbench_sparse.config.columns import PUBLISHED
from robustbench_sparse.foundation.intervals import mean_interval
from robustbench_sparse.foundation.texts import markdown
from robustbench_sparse.reporting.stored import read_leaderboard

REFERENCES = Path(__file__).parents[1] / "results" / "reference"
_MARKED = re.compile(r"<!-- table: begin\n(.*?)-->\n(.*?)<!-- table: end -->", re.DOTALL)
_ASKED = 0.15  # points by which a row's zeros may miss what was asked without a word
_TEXTS = {"verdict", "flags", "commit", "status"}


def filled(page: str, references: Path = REFERENCES) -> str:
    """A page with its tables made anew.

    Raises:
        ValueError: a comment that asks for a row or a column that there is not.
    """
    return _MARKED.sub(lambda found: _marked(found[1], references), page)


def _marked(text: str, references: Path) -> str:
    return f"<!-- table: begin\n{text}-->\n{table_of(yaml.safe_load(text), references)}\n<!-- table: end -->"


def table_of(spec: Mapping[str, Any], references: Path = REFERENCES) -> str:
    """A Markdown table as a comment asks for it; see ``filled``."""
    data = _data(references / spec["reference"])
    rows: Mapping[str, str] = spec.get("rows") or {run: run for run in dict.fromkeys(data["run"])}
    columns: Mapping[str, Any] = spec["columns"]
    left = [title for title, what in columns.items() if _is_text(what)]
    lines = [
        [spec.get("title", ""), *columns],
        ["---", *("---" if title in left else "---:" for title in columns)],
        *(
            [markdown(called), *(_given(what, place, data, run) for what in columns.values())]
            for place, (run, called) in enumerate(rows.items())
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _is_text(what: Any) -> bool:
    if isinstance(what, str):
        return what.split()[0] in _TEXTS or {"text", "each"} & {*what.split()} != set()
    return any(re.search("[A-Za-z]|^[^±[,]* [^±[,]*$", str(cell or "")) for cell in what)


def _given(what: str | Sequence[Any], place: int, data: pd.DataFrame, run: str) -> str:
    if not isinstance(what, str):
        return "" if what[place] is None else str(what[place])
    words = what.split()
    asked = words.pop(0)[1:] if words[0].startswith("@") else ""
    run = run.replace("{}", asked)
    seeds = data[data["run"] == run]
    if seeds.empty:
        raise ValueError(f"{run}: no such row")
    if "status" in seeds.columns and (there := seeds["status"] != "not trained").any():
        seeds = seeds[there]  # a seed to come is no gap in those that are there
    text = " ".join(words)
    joint = next((j for j in (" / ", " at ") if j in text), "\n")
    cells = [_cell(part.split(), seeds, data, asked) for part in text.split(joint)]
    return joint.join(cells) if any(cells) else ""


def _cell(words: Sequence[str], seeds: pd.DataFrame, data: pd.DataFrame, asked: str) -> str:
    """One number with what stands behind it."""
    name, flags = words[0], set(words[1:])
    column = name.removeprefix("100-")
    if column not in seeds.columns:
        raise ValueError(f"{name}: no such column")
    chosen = [f[1:] for f in flags if f.startswith("#")]
    if chosen:
        seeds = seeds[seeds["seed"] == int(chosen[0])]
    if column in _TEXTS or "text" in flags:
        return markdown(" ".join(dict.fromkeys(str(v) for v in seeds[column] if not pd.isna(v))))
    form = next((f for f in flags if f.startswith(".")), ".0f" if column.startswith("rank") else ".1f")
    values = seeds[column].astype("float64")
    values = 100 - values if name != column else values
    if values.isna().any() or values.empty:
        return ""
    if "each" in flags:
        return " ".join(f"{v:{form}}" for v in values)
    other = next((f.removeprefix("vs:") for f in flags if f.startswith("vs:")), None)
    if other is not None:
        return _difference(seeds, data[data["run"] == other], column)
    out = f"{values.mean():{form}}" if form != ".0f" else f"{values.mean():,.0f}".replace(",", " ")
    if "±" in flags:
        out += _spread(seeds, values, column, form)
    published = seeds[f"{PUBLISHED}{column}"].iloc[0] if f"{PUBLISHED}{column}" in seeds.columns else None
    if "()" in flags and published is not None and not pd.isna(published):
        out += f" ({published:{form}})"
    zeros = seeds["weight_sparsity"].mean() if "at" in flags else float(asked or 0)
    return out + (f" (at {zeros:.1f})" if abs(zeros - float(asked or 0)) > _ASKED else "")


def _spread(seeds: pd.DataFrame, values: pd.Series[float], column: str, form: str) -> str:
    if len(values) > 1:
        return f" ± {values.std(ddof=1):{form}}"
    if f"{column}_lo" not in seeds.columns:
        return ""
    return f" [{seeds[f'{column}_lo'].iloc[0]:{form}}, {seeds[f'{column}_hi'].iloc[0]:{form}}]"


def _difference(seeds: pd.DataFrame, others: pd.DataFrame, column: str) -> str:
    """Of seeds that both rows have; empty of a row and itself."""
    if others.empty:
        raise ValueError(f"{column}: no such row to compare with")
    both = seeds.merge(others, on="seed")
    gaps = (both[f"{column}_x"] - both[f"{column}_y"]).astype("float64")
    if (both["run_x"] == both["run_y"]).all():
        return ""
    low, high = mean_interval(gaps.tolist())
    return f"{gaps.mean() + 0.0:+.1f} ± {(high - low) / 2:.1f}"


def _data(folder: Path) -> pd.DataFrame:
    """A reference's leaderboard, or its files of networks: their ``worst``, ``true`` and what the judge said."""
    if (folder / "leaderboard.csv").is_file():
        return read_leaderboard(folder)
    rows = []
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        judged = {
            ("judged" if k == "worst" else k): v for k, v in facts.pop("judged", {}).items() if k != "clean"
        }
        rows.append({"run": path.stem, **facts, **judged})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table
