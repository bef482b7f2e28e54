"""Images handed over in Python: what is taken, what is said of the rest, and that the number is of these images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from robustbench_sparse import evaluate
from robustbench_sparse.config.plugins import build
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.arrays import Arrays, dataset_of, hold, parts_of
from robustbench_sparse.data.base import DataError, DatasetSpec
from robustbench_sparse.foundation.errors import UserError


class Brightness(nn.Module):
    """Class 1 where the mean of the pixels is above a half: margins and radii are known exactly."""

    def forward(self, x: Tensor) -> Tensor:
        z = 8 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def pictures() -> tuple[Tensor, Tensor]:
    """Eight flat images, 0.02 to 0.4 away from a half, and their classes."""
    levels = torch.tensor([25, 77, 104, 122, 133, 151, 178, 230], dtype=torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(8, 1, 8, 8).clone(), torch.tensor([0] * 4 + [1] * 4)


def broken(x: Any, y: Any, classes: int = 2) -> str:
    with pytest.raises(DataError) as caught:
        dataset_of(*parts_of((x, y)), classes)
    return str(caught.value)


def test_what_is_taken() -> None:
    x, y = pictures()
    made, note = dataset_of(x, y, 2)
    assert (made.classes, len(made.train_y), note) == (("0", "1"), 0, "")
    for given in (
        (x.float() / 255, y),
        (x.numpy(), y.numpy().astype(np.uint8)),
        [x.numpy().astype("float64") / 255, y.tolist()],
        TensorDataset(x.float() / 255, y),
    ):
        again, note = dataset_of(*parts_of(given), 2)
        assert (again.fingerprint, note) == (made.fingerprint, "")


def test_what_lies_between_two_bytes_is_rounded_and_said() -> None:
    x, y = pictures()
    made, note = dataset_of(x.double() / 255 + 0.3 / 255 * (x == 25), y, 2)
    assert note == "images rounded to whole bytes, by up to 0.3/255"
    assert torch.equal(made.test_x, x)


def test_what_is_wrong_comes_with_its_cure() -> None:
    x, y = pictures()
    z = x.float() / 255
    assert "images: expected numbers in [0, 1], got 25 to 230: divide them by 255" in broken(x.float(), y)
    assert "take the normalisation back" in broken((z - 0.5) / 0.5, y)
    assert "expected finite numbers" in broken(z.where(z > 0.2, torch.nan), y)
    assert "permute(0, 3, 1, 2)" in broken(x.expand(8, 3, 8, 8).permute(0, 2, 3, 1), y)
    assert "x[:, None]" in broken(x[:, 0], y)
    assert "expected squares, got 8 x 4 pixels" in broken(x[..., :4], y)
    assert "at least one image" in broken(x[:0], y[:0])
    assert "got torch.int64" in broken(x.long(), y)
    assert "expected (8,), one for each image, got (7,)" in broken(x, y[:7])
    assert "argmax(1)" in broken(x, torch.eye(2)[y])
    assert "y.long()" in broken(x, y.float())
    assert "expected 0 to 1, as the network has 2 classes, got 1 to 2: they begin at 1" in broken(x, y + 1)
    assert "got -1 to 0" in broken(x, y - 1)
    assert "images: expected a tensor or an array" in broken("x", y)
    assert "expected a network of at least 2 classes" in broken(x, y, 1)
    with pytest.raises(DataError, match="expected a pair"):
        parts_of((x, y, y))
    with pytest.raises(DataError, match="got Tensor"):
        parts_of(x)


def test_another_process_does_not_know_them() -> None:
    made, _ = dataset_of(*pictures(), 2)
    spec = build(DATASETS, hold(made), "dataset", DatasetSpec)  # type: ignore[type-abstract]
    assert spec.load() is made
    with pytest.raises(DataError, match="known only to the process"):
        Arrays(fingerprint="0" * 16).load()


def test_the_number_is_of_these_images() -> None:
    """An l_inf ball of 0.1 turns exactly the images that lie less than that from a half."""
    x, y = pictures()
    table = evaluate(Brightness(), data=(x, y), eps=0.1, attacks=["fgsm"])
    row = table.iloc[-1]
    assert (row["n"], row["clean"], row["worst"]) == (8, 100.0, 50.0)
    assert (row["dataset"], row["status"]) == ("arrays", "ok")
    assert table.attrs["images"] == list(range(8))


def test_a_certificate_needs_no_training_images() -> None:
    x, y = pictures()
    table = evaluate(Brightness(), data=(x.float() / 255, y), eps=0.1, attacks=["fgsm"], certificate="quick")
    row = table.iloc[-1]
    assert row["protocol"].split("+")[1].startswith("quick-")
    assert row["worst"] == 50.0
    assert not {"U1", "U6", "U7", "H1"} & set(row["flags"].split())


def test_data_and_a_data_set_are_not_both() -> None:
    with pytest.raises(UserError, match="either data or dataset"):
        evaluate(Brightness(), data=pictures(), dataset="digits")
    with pytest.raises(UserError, match="data: labels: expected 0 to 1, as the network has 2 classes"):
        evaluate(Brightness(), data=(pictures()[0], pictures()[1] + 7))
