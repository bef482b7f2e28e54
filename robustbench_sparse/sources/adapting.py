"""A network from elsewhere made to fit what a user says: a normalisation in front, classes, the size of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.sources.classes import check_indices, indices_of
from robustbench_sparse.sources.front import choosing, fronted
from robustbench_sparse.sources.preparation import Numbers, Preparation, normalisation_of

FOLDER = "image_folder"  # the data set whose images are brought to a size


def with_normalisation(
    model: nn.Module, preparation: Preparation, mean: str | None, std: str | None
) -> tuple[nn.Module, Preparation]:
    """A network with the normalisation of ``--mean`` and ``--std`` in front, not its source's; and what that is.

    Raises:
        UserError: see ``normalisation_of``.
    """
    if mean is None and std is None:
        return model, preparation
    found: tuple[Numbers | None, Numbers | None] = normalisation_of(mean, std) or (None, None)
    said = replace(preparation, mean=found[0], std=found[1], origin="as --mean and --std say")
    return fronted(model, *found), said


def with_classes(
    model: nn.Module, classes: str | Sequence[int], names: Sequence[str], labels: Sequence[str]
) -> tuple[nn.Module, list[int]]:
    """A network whose logits are those of a data set's classes, and their indices among its own.

    Args:
        model: of more classes, or of as many in another order.
        classes: see ``classes.indices_of``; or the indices.
        names: of the data set's classes.
        labels: of the network's, where they are known.

    Raises:
        UserError: see ``classes.indices_of``.
    """
    text = classes if isinstance(classes, str) else ",".join(map(str, classes))
    indices = indices_of(text, names, labels)
    if labels:
        check_indices(indices, len(labels))
    return choosing(model, indices), indices


def are_indices(classes: str | Sequence[int] | None) -> bool:
    """Whether classes are given as indices alone, for which no names are needed."""
    if classes is None:
        return False
    return not isinstance(classes, str) or all(part.strip().isdecimal() for part in classes.split(","))


def numbered(classes: str | Sequence[int]) -> list[str]:
    """Names of classes that are numbered alone, as many as there are indices."""
    count = len(classes.split(",")) if isinstance(classes, str) else len(classes)
    return [str(i) for i in range(count)]


def with_size(
    dataset: str | Mapping[str, Any] | None, preparation: Preparation, changes: Sequence[str]
) -> str | Mapping[str, Any] | None:
    """A folder of images as a network's maker resizes and cuts them, where the user says nothing else of their size."""
    entry = {"name": dataset} if isinstance(dataset, str) else dict(dataset or {})
    given = "size" in entry or any(change.startswith("data.size=") for change in changes)
    settings = preparation.data_settings()
    if entry.get("name") != FOLDER or given or not settings:
        return dataset
    return {**entry, **settings}


def refuse_gradients(labels: Sequence[str], known: Sequence[str]) -> None:
    """UserError for attacks that need a gradient of a network that has none.

    Args:
        labels: of such attacks.
        known: names of attacks that need none.
    """
    if labels:
        raise UserError(
            f"attacks: {labels[0]} needs a gradient, and this network only answers: expected attacks without gradients "
            f"({', '.join(known)})"
        )
