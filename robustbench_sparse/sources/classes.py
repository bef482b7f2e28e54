"""``--classes``: which of a network's logits belong to the classes of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from robustbench_sparse.foundation.errors import UserError, check_installed, near, shown

FOLDERS = "folders"


def indices_of(text: str, names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The index of a logit for every class of a data set.

    Args:
        text: ``3,17,207``, one index for each class in the data set's order; ``cat=281,dog=207``, by the classes'
            names; or ``folders``: the classes' names are such indices, or names of the network's classes.
        names: of the data set's classes, in its order.
        labels: of the network's classes, where they are known.

    Raises:
        UserError: a class without an index, an index that stands twice, or a name that is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == [FOLDERS]:
        found = [_by_name(name, labels) for name in names]
    elif any("=" in part for part in parts):
        given = _pairs(parts)
        wrong = next((name for name in given if name not in names), None)
        if wrong is not None:
            raise UserError(f"--classes: the data has no class {shown(wrong)}{near(wrong, names)}")
        missing = next((name for name in names if name not in given), None)
        if missing is not None:
            raise UserError(f"--classes: no index for the class {shown(missing)}")
        found = [given[name] for name in names]
    else:
        found = [_index(part) for part in parts]
    if len(found) != len(names):
        raise UserError(
            f"--classes: expected {len(names)} indices, one for each class of the data, got {len(found)}"
        )
    twice = next((i for i in found if found.count(i) > 1), None)
    if twice is not None:
        raise UserError(f"--classes: {twice} stands there twice")
    return found


def check_indices(indices: Sequence[int], logits: int) -> None:
    """UserError for an index beyond a network's logits."""
    if max(indices) >= logits:
        raise UserError(
            f"--classes: expected indices below {logits}, the network's classes, got {max(indices)}"
        )


def _pairs(parts: Sequence[str]) -> Mapping[str, int]:
    given: dict[str, int] = {}
    for part in parts:
        name, equals, index = part.rpartition("=")
        if not equals or not name:
            raise UserError(f"--classes: expected name=index, got {shown(part)}")
        given[name.strip()] = _index(index.strip())
    return given


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"--classes: expected a whole number >= 0, got {shown(text)}")
    return int(text)


def _by_name(name: str, labels: Sequence[str]) -> int:
    if name.isascii() and name.isdecimal():
        return _index(name)
    if re.fullmatch(r"n\d{8}", name):
        labels = _synsets()
    wanted = _plain(name)
    places = [
        i for i, label in enumerate(labels) if wanted in {_plain(label), _plain(label.partition(",")[0])}
    ]
    if len(places) != 1:
        known = list(labels)
        why = (
            "the network's classes have no names here" if not labels else "none, or several, of the network's"
        )
        raise UserError(f"--classes folders: {shown(name)} names no class: {why}{near(name, known)}")
    return places[0]


def _synsets() -> list[str]:
    """The names of ImageNet's folders in the order of its classes; timm has them."""
    check_installed(("timm",), "timm")
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_label_name(i) for i in range(info.num_classes())]


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", " ").replace("-", " ")
