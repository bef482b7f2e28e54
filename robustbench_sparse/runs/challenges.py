"""Adversarials of others that lower a row's number: reading what ``exchange.challenge`` stored in its folder.

They count in ``worst`` as those of a certificate's checks do, and their authors are named beside the number. What was
shown of other weights, other images or another threat says nothing of the row, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_as, read_json
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals

FORMAT = 1
MOST_AUTHOR = 100  # characters
FLAG = "challenge:"  # before the author, in the leaderboard's flags


class _Facts(BaseModel):
    format: int
    author: str = Field(min_length=1, max_length=MOST_AUTHOR)
    file: str
    n: int = Field(ge=1)
    broken: int = Field(ge=0)
    before: float = Field(ge=0, le=1)
    after: float = Field(ge=0, le=1)
    key: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One file of adversarials that fooled a row's network where nothing had before.

    Attributes:
        name: the first digits of the file's SHA-256.
        author: who made them.
        file: SHA-256 of the file that was sent in.
        n: images that it had.
        broken: those on which it lowered the row's verdict when it came in.
        before, after: the row's worst case then, as a share of the images that it stood on.
        found: position in the data set -> share of draws still right on the adversarial, of the ``broken`` images.
    """

    name: str
    author: str
    file: str
    n: int
    broken: int
    before: float
    after: float
    found: Mapping[int, float]

    @property
    def flag(self) -> str:
        """How the leaderboard's flags name it: a single word."""
        return FLAG + "_".join(self.author.split())

    def said(self) -> str:
        """What it came to, in a line."""
        return (
            f"challenge {self.name} by {self.author}: broke {self.broken} of {self.n} images that stood before, "
            f"{100 * self.before:.1f} -> {100 * self.after:.1f} %"
        )


def has_challenges(run: Path) -> bool:
    """Whether a run's folder holds any, of its present network or not."""
    return any(names.challenge_of(file) is not None for file in Seals(run).hashes())


def read_challenges(
    run: Path, manifest: Mapping[str, Any], index: Sequence[int]
) -> tuple[list[Challenge], list[str]]:
    """The challenges of a run that speak of its present network, images and threat; and why others do not.

    Args:
        run: the run's folder.
        manifest: the benchmark's.
        index: positions of the judged images.

    Raises:
        UserError: a file was changed or is damaged.
    """
    seals = Seals(run)
    found: list[Challenge] = []
    notes: list[str] = []
    for name in sorted(c for file in seals.hashes() if (c := names.challenge_of(file)) is not None):
        account, verdicts, images = names.challenge(name)
        seals.check(account, verdicts, images)
        about = read_as(run / account, _Facts)
        key = read_json(run / names.account(names.CLEAN))["key"]
        present = {"identity": key["identity"], "threat": dict(manifest["threat"])}
        if about["format"] != FORMAT or about["key"] != present:
            notes.append(f"challenge {name} by {about['author']}: of another network or threat, not counted")
            continue
        right = _right(run / verdicts)
        known = set(index)
        found.append(
            Challenge(
                name=name,
                found={i: r for i, r in right.items() if i in known},
                **{k: about[k] for k in ("author", "file", "n", "broken", "before", "after")},
            )
        )
    return found, notes


def _right(path: Path) -> dict[int, float]:
    try:
        table = pd.read_csv(path)
        right = {int(i): float(r) for i, r in zip(table["index"], table["right"], strict=True)}
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)}") from None
    if not all(0 <= r <= 1 for r in right.values()):
        raise UserError(f"{path}: damaged: expected shares in [0, 1]")
    return right
