"""Whatever is wrong with the input: one line that says what, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from robustbench_sparse.cli.main import main
from tests.helpers.small import SMALL


def call(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command line; check what every refusal has in common; return its one line."""
    monkeypatch.setattr("sys.argv", ["robustbench-sparse", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code == 2, printed
    assert "Traceback" not in printed.err + printed.out
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    raw = copy.deepcopy(SMALL)
    change(raw)
    return raw


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(raw: dict[str, Any]) -> None:
        here = raw
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value

    return change


# What is changed in a good config -> parts that the line must hold.
CASES: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "unknown key": (put("train", "batchsize", value=3), ["train.batchsize", "batch_size"]),
    "unknown key at the top": (put("atacks", value={}), ["atacks", "attacks"]),
    "wrong type": (put("train", "epochs", value="three"), ["train.epochs", "whole number", "'three'"]),
    "text for a number": (put("threat", "eps", value="8/255 "), ["threat.eps", "number"]),
    "negative eps": (put("threat", "eps", value=-1), ["threat.eps", "-1"]),
    "negative eps of an attack": (
        put("attacks", "pgd", "threat", value={"eps": -1}),
        ["attacks.pgd.threat.eps", "-1"],
    ),
    "unknown attack": (put("attacks", "pgd", "name", value="pdg"), ["attacks.pgd.name", "pdg", "pgd"]),
    "unknown setting": (put("attacks", "pgd", "step", value=4), ["attacks.pgd.step", "steps"]),
    "refused setting": (put("attacks", "pgd", "steps", value=0), ["attacks.pgd.steps", "0"]),
    "unknown defense": (
        put("runs", "natural", "defenses", value=["rgms"]),
        ["runs.natural.defenses.0.name", "rgms", "rgsm"],
    ),
    "unknown model": (put("model", "name", value="resnet"), ["model.name", "resnet"]),
    "unknown dataset": (put("data", "name", value="mnits"), ["data.name", "mnits", "mnist"]),
    "unknown optimizer": (put("train", "optimizer", value={"name": "sdg"}), ["train.optimizer.name", "sgd"]),
    "class of one's own that is none": (
        put("attacks", "pgd", value={"name": "json:loads"}),
        ["attacks.pgd.name", "attacks.base.Attack"],
    ),
    "unknown shift": (put("shifts", value={"a": "gausian_noise"}), ["shifts.a.name", "gaussian_noise"]),
    "severity that there is not": (
        put("shifts", value={"a": {"name": "jpeg", "severity": 7}}),
        ["shifts.a.severity", "1, 2, 3, 4 or 5", "7"],
    ),
    "size without pixels": (
        put("shifts", value={"r": {"name": "resolution", "size": 0}}),
        ["shifts.r.size", "0"],
    ),
    "resolution without a size": (put("shifts", value={"r": "resolution"}), ["shifts.r", "size"]),
    "shift under an attack's label": (put("shifts", value={"pgd": "jpeg"}), ["shifts.pgd", "no attack has"]),
    "shift under a column's name": (put("shifts", value={"worst": "jpeg"}), ["shifts.worst", "label"]),
    "shifts of a restoration task": (
        lambda raw: raw.update(
            task="restore", shifts={"j": "jpeg"}, attacks={}, model="identity", runs={"a": {}}
        ),
        ["shifts", "restore"],
    ),
    "module that does not exist": (
        put("attacks", "pgd", value={"name": "no_such_module:Attack"}),
        ["attacks.pgd.name", "no_such_module"],
    ),
    "convolutions on a perceptron": (
        put("runs", "natural", value={"model": {"name": "mlp"}, "defenses": [{"name": "rgsm", "beta": 1.0}]}),
        ["runs.natural", "convolution"],
    ),
    "ensemble of networks without residual blocks": (
        put("runs", "natural", value={"model": {"name": "mlp"}, "defenses": ["enresnet"]}),
        ["runs.natural", "residual"],
    ),
    "two defenses that replace the images": (
        put("runs", "natural", "defenses", value=["pgd_at", "pgd_at"]),
        ["runs.natural.defenses", "at most one"],
    ),
    "missing data": (put("data", value={"name": "cifar100"}), ["CIFAR-100", "--data-root"]),
    "more validation than images": (put("validation", value=5000), ["validation", "5000"]),
    "no validation to select on": (put("validation", value=0), ["validation"]),
    "published value of no run": (
        put("published", value={"values": {"naturl": {"clean": 1.0}}}),
        ["published.values.naturl", "natural"],
    ),
    "no runs": (put("runs", value={}), ["runs"]),
    "same seed twice": (put("seeds", value=[1, 1]), ["seeds"]),
    "a name that leaves the folder": (put("name", value="../x"), ["name"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_config(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, parts = CASES[case]
    path, out, empty = tmp_path / "bad.yaml", tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    path.write_text(yaml.safe_dump(changed(change), sort_keys=False))
    line = call(["run", str(path), "--out", str(out), "--data-root", str(empty)], capsys, monkeypatch)
    for part in parts:
        assert part in line, line
    assert not out.exists(), "nothing may be written"


def test_the_good_config_of_these_cases_is_good(tmp_path: Path) -> None:
    from robustbench_sparse.config.load import resolve

    assert [r.label for r in resolve(copy.deepcopy(SMALL)).runs] == ["natural", "all"]


def test_yaml_syntax_error_names_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\ndata: {name: digits\nruns: 3\n")
    line = call(["run", str(path), "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert f"{path}:3" in line
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_shown_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.yaml"
    text = yaml.safe_dump(SMALL, sort_keys=False).replace("batch_size: 64", "batchsize: 64")
    path.write_text(text)
    number = next(i for i, row in enumerate(text.splitlines(), 1) if "batchsize" in row)
    line = call(["run", str(path), "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert f"{path}:{number}: train.batchsize: " in line


@pytest.mark.parametrize(
    "arguments", [["--only", "naturl"], ["--seeds", "a"], ["--set", "train"], ["--device", "tpu"]]
)
def test_bad_options(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    line = call(["run", str(path), "--out", str(tmp_path / "out"), *arguments], capsys, monkeypatch)
    assert arguments[0] in line
    assert not (tmp_path / "out").exists()


def test_output_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "good.yaml", tmp_path / "a_file"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    out.write_text("")  # a file in the folder's place: refused for every user, root too
    line = call(["run", str(path), "--out", str(out)], capsys, monkeypatch)
    assert str(out) in line
    assert "cannot be written" in line


def image_folder(root: Path, classes: int = 2) -> Path:
    for split in ("train", "test"):
        for k in range(classes):
            (root / split / f"class{k}").mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (k * 100, i * 20, 0)).save(root / split / f"class{k}" / f"{i}.jpg")
    return root


def folder_config(path: Path, images: Path) -> Path:
    raw = changed(put("data", value={"name": "image_folder", "path": str(images)}))
    raw |= {"validation": 2, "train_limit": None}
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_image_folder_with_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_config(tmp_path / "c.yaml", image_folder(tmp_path / "images", classes=1))
    line = call(["run", str(config), "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert "class" in line
    assert not (tmp_path / "out").exists()


def test_image_folder_with_an_unreadable_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path / "images")
    broken = images / "test" / "class1" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    config = folder_config(tmp_path / "c.yaml", images)
    line = call(["run", str(config), "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert "test/class1/2.jpg" in line
    assert not (tmp_path / "out").exists()


# A network from elsewhere --------------------------------------------------------------------------------


def linear() -> nn.Module:
    """A user's own network for 8x8 digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Bomb:
    """Unpickling this would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def weights_file(kind: str, folder: Path) -> tuple[Path, list[str]]:
    good = {k: v.clone() for k, v in linear().state_dict().items()}
    path = folder / "weights.safetensors"
    if kind == "missing":
        return path, ["no such file"]
    if kind == "another architecture":
        save_file(nn.Linear(3, 10).state_dict(), path)
        return path, ["another architecture", "1.weight"]
    if kind == "another shape":
        save_file(good | {"1.weight": torch.zeros(10, 65)}, path)
        return path, ["another architecture", "(10, 65)", "(10, 64)"]
    if kind == "truncated":
        save_file(good, path)
        path.write_bytes(path.read_bytes()[:-100])
        return path, ["not a readable checkpoint"]
    if kind == "no checkpoint at all":
        path.write_text("hello")
        return path, ["not a readable checkpoint"]
    path = folder / "weights.pt"
    if kind == "truncated torch file":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-300])
        return path, [str(path)]
    if kind == "torch file that runs code":
        torch.save({"state_dict": Bomb(folder / "executed")}, path)
        return path, ["refused", "code"]
    assert kind == "plain pickle that runs code"
    path.write_bytes(pickle.dumps(Bomb(folder / "executed")))
    return path, ["refused"]


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "another architecture",
        "another shape",
        "truncated",
        "no checkpoint at all",
        "truncated torch file",
        "torch file that runs code",
        "plain pickle that runs code",
    ],
)
def test_bad_weights(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parts = weights_file(kind, tmp_path)
    out = tmp_path / "out"
    arguments = ["evaluate", f"{__name__}:linear", "--dataset", "digits", "--weights", str(path)]
    line = call([*arguments, "--out", str(out)], capsys, monkeypatch)
    for part in [str(path), *parts]:
        assert part in line, line
    assert not out.exists()
    assert not (tmp_path / "executed").exists(), "a checkpoint ran code"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["no_such_module_at_all:net", "--dataset", "digits"], "no_such_module_at_all"),
        ([f"{__name__}:linaer", "--dataset", "digits"], "linear"),
        ([f"{__name__}:linear", "--dataset", "digist"], "digits"),
        ([f"{__name__}:linear"], "--dataset"),
        ([f"{__name__}:linear", "--dataset", "digits", "--attacks", "fgms"], "fgsm"),
        ([f"{__name__}:linear", "--dataset", "digits", "--suite", "strong"], "standard"),
        ([f"{__name__}:linear", "--dataset", "digits", "--eps", "much"], "eps"),
        (["nowhere", "--dataset", "digits"], "nowhere"),
    ],
)
def test_bad_evaluation(
    arguments: list[str],
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    line = call(["evaluate", *arguments, "--out", str(out)], capsys, monkeypatch)
    assert part in line
    assert not out.exists()
