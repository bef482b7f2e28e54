"""From a study's name to its two files: a CSV and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_sparse.config import plugins
from robustbench_sparse.foundation import texts
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.reporting.plots import new_figure, save
from robustbench_sparse.studies import STUDIES, Result, Study

KINDS = ("png", "svg", "pdf")
FIGURE = "--figure"
NO_FIGURE = "no figure: it needs matplotlib, which comes with the extra 'studies' of robustbench_sparse"


def make(
    name: str, out: Path, settings: Mapping[str, Any], kind: str, show: Progress
) -> tuple[Result, list[Path]]:
    """Run a study and write ``NAME.csv`` and ``NAME.<kind>`` into a folder; those that are there are replaced.

    Without matplotlib there is no figure. Nothing is written before both are made.

    Args:
        name: a key of ``STUDIES``.
        out: the folder; made if it is not there.
        settings: of the study; all others have their defaults.
        kind: of the figure, one of ``KINDS``.
        show: where progress goes.

    Returns:
        What the study has found, and the files.

    Raises:
        UserError: an unknown study, setting or kind, a bad value, or a path that is no folder.
    """
    study = built(name, settings)
    if kind not in KINDS:
        raise UserError(f"{FIGURE}: expected {', '.join(KINDS)}, got {kind!r}{near(kind, KINDS)}")
    _check_folder(out)
    drawn = can_draw()
    result = study.run(show)
    files = [out / f"{name}.csv", out / f"{name}.{kind}"][: 1 + drawn]
    figure = new_figure(files[-1], FIGURE, KINDS) if drawn else None
    if figure is not None:
        result.draw(figure)
    write_text(files[0], texts.to_csv(result.table, "%.8g"))
    if figure is not None:
        save(figure, files[1], FIGURE)
    return result, files


def built(name: str, settings: Mapping[str, Any]) -> Study:
    """A study with its settings; UserError for one that there is not, or a setting that does not fit."""
    if name not in STUDIES:
        raise UserError(f"study {name}: no such study{near(name, STUDIES)}; there are: {', '.join(STUDIES)}")
    if "name" in settings:
        raise UserError(f"study {name}: name: not a setting")
    base: Any = Study  # abstract, which mypy does not take for a type[T]
    try:
        made: Study = plugins.build(STUDIES, {**settings, "name": name}, "study", base)
    except plugins.SettingError as e:
        raise UserError(f"study {name}: {e}") from None
    return made


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def lines_of() -> list[str]:
    """What the command says without a name: every study with a line, what was published, and its settings."""
    out = []
    for name, cls in STUDIES.items():
        out += [f"{name}: {plugins.describe(cls)}", f"    as {cls.published}"]
        for setting, default in plugins.settings_with_defaults(cls).items():
            out.append(f"    {setting}: {_plain(default)}")
    return out


def _plain(value: Any) -> str:
    """A default as ``--set`` takes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check_folder(out: Path) -> None:
    """UserError where files cannot be put because something else is in the way."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {out}: {'' if path == out else f'{path} is '}no folder")
