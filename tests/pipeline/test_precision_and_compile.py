"""What --precision and --compile change, and what they must not: verdicts are the network's own, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from robustbench_sparse import run_benchmark
from robustbench_sparse.cli.main import app
from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.record import locate
from tests.helpers.small import small

BF16: dict[str, Any] = {
    "evaluation": {"limit": 96, "batch_size": 32, "draws": 3, "precision": "bf16"},
    "runs": {
        "pgd_at": {
            "defenses": [{"name": "pgd_at", "steps": 2, "eps": 0.01}],
            "train": {"precision": "bf16", "epochs": 8},
        }
    },
}


def outcome(folder: Path, label: str, name: str = "small") -> pd.DataFrame:
    (run,) = (folder / name / "runs").iterdir()
    return pd.read_csv(run / "outcomes" / f"{label}.csv")


def test_same_numbers_twice_and_verdicts_that_hold(tmp_path: Path) -> None:
    tables = [run_benchmark(small(**BF16), out=tmp_path / str(n)) for n in range(2)]
    columns = ["clean", "fgsm", "pgd", "worst"]
    assert tables[0][columns].equals(tables[1][columns])
    assert tables[0]["clean"][0] > 25, "a network that learned: chance is 10"
    assert tables[0]["pgd"][0] < tables[0]["clean"][0]
    first, second = (outcome(tmp_path / str(n), "pgd") for n in range(2))
    assert first.drop(columns="seconds", errors="ignore").equals(
        second.drop(columns="seconds", errors="ignore")
    )

    (run,) = (tmp_path / "0" / "small" / "runs").iterdir()
    speeds = json.loads((run / "speed.json").read_text())
    assert [s["precision"] for key, s in speeds.items() if key.startswith("attacks")] == ["bf16"]
    about = json.loads((run / "outcomes" / "pgd.json").read_text())
    assert about["key"]["precision"] == "bf16"


def test_another_precision_attacks_the_same_weights_anew(tmp_path: Path) -> None:
    config = small(**BF16)
    run_benchmark(config, out=tmp_path)
    quick = outcome(tmp_path, "pgd")
    table = run_benchmark(config, out=tmp_path, changes=["evaluation.precision=fp32"])
    plain = outcome(tmp_path, "pgd", "small@precision=fp32")
    assert table["status"].tolist() == ["ok"]
    first, second = (p.read_bytes() for p in tmp_path.glob("small*/runs/*/training.json"))
    assert first == second, "the same run, its weights trained once"
    assert not quick["l2"].equals(plain["l2"]), "other candidates"
    assert (quick["adv_correct"] != plain["adv_correct"]).mean() <= 0.03, "the same verdicts"
    assert (quick["clean_correct"] == plain["clean_correct"]).all()


def test_training_in_another_precision_is_another_run(tmp_path: Path) -> None:
    ids = set()
    for change in ("precision=fp32", "precision=bf16", "compile=on"):
        plan = resolve(small(), changes=[f"train.{change}"])
        ids.add(locate(tmp_path, plan, plan.runs[0], 0, plan.dataset.load(None, None)).run_id)
    assert len(ids) == 3


@pytest.mark.parametrize("key", ["precision", "compile"])
def test_training_leaves_nothing_to_a_measurement(key: str) -> None:
    with pytest.raises(UserError, match=f"train.{key}: expected .* got 'auto'"):
        resolve(small(), changes=[f"train.{key}=auto"])


@pytest.mark.parametrize(
    "key", ["evaluation.precision", "train.precision", "evaluation.compile", "train.compile"]
)
def test_a_word_that_is_none_of_the_choices_is_an_error(key: str) -> None:
    with pytest.raises(UserError, match=key):
        resolve(small(), changes=[f"{key}=fast"])


def test_batch_size_is_a_number_or_auto() -> None:
    assert resolve(small(evaluation={})).config.evaluation.batch_size == "auto"
    for wrong in ("0", "many", "1.5"):
        with pytest.raises(UserError, match=r"evaluation\.batch_size"):
            resolve(small(), changes=[f"evaluation.batch_size={wrong}"])


def test_the_command_line_sets_both_parts(tmp_path: Path) -> None:
    import yaml

    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small(runs={"natural": {}}, train={"epochs": 1, "batch_size": 64})))
    arguments = ["run", str(config), "--out", str(tmp_path), "--precision", "bf16", "--compile", "off", "-q"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (run,) = tmp_path.glob("small@*/runs/*")
    stage = json.loads((run / "run.json").read_text())["record"]["stages"][0]
    assert (stage["precision"], stage["compile"]) == ("bf16", "off")
    assert json.loads((run / "outcomes" / "pgd.json").read_text())["key"]["precision"] == "bf16"
    bad = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path), "--precision", "half"])
    assert bad.exit_code == 2
    assert "precision" in bad.output


def test_verdicts_are_counted_on_the_network_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights read back and judged by hand on what the attack left give the stored verdicts."""
    from robustbench_sparse.data.loading import load_dataset
    from robustbench_sparse.engine.fast import FastNetwork
    from robustbench_sparse.foundation.progress import Silent
    from robustbench_sparse.judging.judge import Judge, JudgeSettings

    run_benchmark(small(**BF16), out=tmp_path)
    plan = resolve(small(**BF16))
    dataset = load_dataset(plan.dataset, None)
    data = plan.prepare(dataset, torch.device("cpu"))
    place = locate(tmp_path / "small", plan, plan.runs[0], 0, dataset)
    model = place.network(data.channels, data.size, data.classes)
    judge = Judge(
        model,
        data,
        tmp_path / "again",
        JudgeSettings(seed=1, batch_size=96),
        "w",
        Silent(),
        "",
        FastNetwork(model),
    )
    judge.clean()
    attack_batch = judge._attack_batch
    by_hand: dict[int, tuple[bool, float]] = {}

    def watched(*args: Any) -> tuple[pd.DataFrame, torch.Tensor]:
        table, candidate = attack_batch(*args)
        assert candidate.dtype == torch.float32
        with torch.no_grad():
            right = (model(candidate).argmax(1) == args[4]).tolist()
        sizes = (candidate - args[3]).abs().flatten(1).amax(1).tolist()
        # Images that only the narrow numbers left right are attacked again: their last attempt counts.
        by_hand.update(zip(table["index"], zip(right, sizes, strict=True), strict=True))
        return table, candidate

    monkeypatch.setattr(judge, "_attack_batch", watched)
    table = judge.attack(plan.attacks[1])
    assert len(by_hand) == len(table) == 96
    assert [by_hand[i][0] for i in table["index"]] == (table["adv_correct"] == 1).tolist()
    assert [by_hand[i][1] for i in table["index"]] == pytest.approx(table["linf"].tolist(), abs=1e-6)
