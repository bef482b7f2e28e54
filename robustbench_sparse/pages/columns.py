"""The columns of the report's leaderboard: what they are called, what they mean, which are shown at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_sparse.config.columns import PUBLISHED, RESTORED, SPARSITIES
from robustbench_sparse.pages.boards import Board


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        key: its name in ``leaderboard.csv`` where it has one.
        title: for people.
        group: under which the reader finds it when choosing columns.
        kind: ``text``, ``rate``, ``number``, ``percent``, ``seconds``, ``rank``, ``verdict``, ``code``.
        help: one line.
        shown: at first.
        descending: the first sort goes from large to small.
    """

    key: str
    title: str
    group: str
    kind: str
    help: str = ""
    shown: bool = False
    descending: bool = True


def _up(key: str, title: str, group: str, kind: str = "text", note: str = "", shown: bool = False) -> Column:
    """A column that goes up at first: texts, and numbers of which fewer are better."""
    return Column(key=key, title=title, group=group, kind=kind, help=note, shown=shown, descending=False)


_FRONT = (
    _up("rank", "Rank by worst", "Row", "rank",
        "smallest possible rank by the worst case among rows of the same benchmark, seed and protocol; tied rows share "
        "it, and behind it stand all that are possible", True),
    _up("run", "Run", "Row", "link", "the row; its anchor and page", True),
    _up("benchmark", "Benchmark", "Row", shown=True),
    _up("verdict", "Verdict", "Belief", "verdict", "whether it can be believed; opens the evidence, and the repair",
        True),
    Column(key="clean", title="Clean", group="Rates", kind="rate", shown=True,
           help="percent classified right, with its 95 % interval; published values in parentheses"),
    Column(key="worst", title="Worst case", group="Rates", kind="rate", shown=True,
           help="percent that no attack and no check's adversarial broke inside the ball, with its 95 % interval"),
)  # fmt: skip
_ZEROS = {
    "linear_sparsity": "Zeros in linear layers",
    "channel_sparsity": "Zero channels",
    "kernel_sparsity": "Zero kernels",
    "row_sparsity": "Zero rows",
}
_BACK = (
    Column(key="n", title="n", group="Row", kind="number", shown=True, help="test images"),
    _up("eps", "eps", "Row", "eps", "norm and radius of the threat", True),
    Column(key="weight_sparsity", title="Zero weights", group="Sparsity", kind="percent", shown=True,
           help="percent, counted in the file that was attacked"),
    _up("structure", "Structure of zeros", "Sparsity", note="where most of the zeros lie"),
    *(Column(key=c, title=_ZEROS[c], group="Sparsity", kind="percent", help="percent") for c in SPARSITIES[1:]),
    _up("asked", "Asked for", "Sparsity", note="what a method was asked for, and what the file has"),
    _up("nonzero_parameters", "Non-zero parameters", "Size", "number", shown=True),
    _up("parameters", "Parameters", "Size", "number"),
    _up("macs", "MACs", "Size", "number", "multiplications of one image"),
    _up("sparse_macs", "Sparse MACs", "Size", "number", "those that are not by zero"),
    _up("latency", "Latency (ms)", "Size", "latency", "of one image, on the processor that the page's foot names",
        True),
    _up("dataset", "Data", "Row"),
    _up("model", "Model", "Row"),
    _up("defenses", "Method", "Row", note="with the settings that are not defaults"),
    _up("division", "Training", "Row", note="the division of its training"),
    _up("seed", "Seed", "Row", "number", shown=True),
    _up("rank_seeds", "Rank over seeds", "Row", "rank", "the same for the mean over the seeds"),
    _up("detectable", "Detectable", "Belief", "number",
        "smallest difference, in points, that neighbouring rows would show with a power of 80 %"),
    _up("flags", "Flags", "Belief", note="checks that failed"),
    _up("protocol", "Protocol", "Belief",
        note="suite and certificate with their versions; only rows of one protocol are ranked together"),
    _up("precision", "Precision", "Belief", note="of the training"),
    Column(key="train_accuracy", title="Train accuracy", group="Rates", kind="percent"),
    _up("train_seconds", "Training (s)", "Size", "seconds"),
    _up("eval_seconds", "Judging (s)", "Size", "seconds"),
    _up("commit", "Commit", "Belief", "code", "of the source, at training"),
    Column(key="date", title="Date", group="Belief", kind="text",
           help="day of the last verdict, or of the commit that a written table names"),
    _up("status", "Status", "Row", note="ok, or what is missing and why"),
)  # fmt: skip


def columns_of(boards: Sequence[Board]) -> list[Column]:
    """All columns that some row has a value in, in the order of the page.

    Between the worst case and the rest stand the attacks, the shifts, and the measures of restoration networks, in the
    order in which the boards name them.
    """
    entries = [e for b in boards for e in b.entries]
    rates = dict.fromkeys(r for e in entries for r in e.rates)
    own = [
        Column(
            key=r,
            title=r,
            group="Rates",
            kind="measure" if _is_error(r) else "rate",
            descending=not _is_error(r),
        )
        for r in rates
        if r not in ("clean", "worst")
    ]
    filled = {key for e in entries for key in e.row} | {"structure", "division", "eps", "date", "latency"}
    published = {c.removeprefix(PUBLISHED) for c in filled if c.startswith(PUBLISHED)}
    return [c for c in (*_FRONT, *own, *_BACK) if c.key in filled or c.key in published]


def _is_error(rate: str) -> bool:
    return rate in RESTORED or rate.endswith("_mse")
