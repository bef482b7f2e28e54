"""The commands that take a network of the zoo: listing, counting, measuring again."""

from __future__ import annotations

import pandas as pd
import pytest

from robustbench_sparse import evaluation
from robustbench_sparse.runs import zoo
from tests.helpers.commands import call, one_line

NAME = "mnist/lenet-rgsm71"


def test_the_list_has_every_network_with_its_numbers() -> None:
    lines = call("list", "zoo").stdout.splitlines()
    assert [line.split(": ")[0] for line in lines[::2]] == [f"zoo:{name}" for name in zoo.names_of()]
    row = zoo.find(NAME).row
    (line,) = (line for line in lines if NAME in line)
    assert f"clean {row['clean']:.1f} %" in line
    assert f"robust {row['worst']:.1f} %" in line
    assert line.endswith(row["verdict"])


def test_zeros_are_counted_in_the_zoos_file() -> None:
    result = call("sparsity", f"zoo:{NAME}", "--format", "csv")
    assert result.exit_code == 0, result.output
    assert (
        "5/6" in result.stdout or "83.33" in result.stdout
    )  # one of the second layer's six channels is left


def test_a_wrong_name_is_said_in_one_line() -> None:
    assert "did you mean 'mnist/lenet-trades'" in one_line(call("evaluate", "zoo:mnist/lenet-trade"))


@pytest.mark.parametrize(("off", "code"), [(0.0, 0), (20.0, 1)])
def test_what_is_measured_stands_beside_the_record(
    off: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = zoo.find(NAME).row
    table = pd.DataFrame([{**row, "clean": row["clean"] - off}])
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: table)
    result = call("evaluate", f"zoo:{NAME}")
    assert result.exit_code == code, result.output
    assert "clean: " in result.stderr
    assert ("DIFFERS" in result.stderr) == bool(off)
    asked = call(
        "evaluate", f"zoo:{NAME}", "--eps", "0.3"
    )  # another threat than the record's: nothing to compare
    assert "recorded" not in asked.stderr
