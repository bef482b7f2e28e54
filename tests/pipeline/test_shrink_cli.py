"""The commands sparsity and shrink on a trained run: tables, files, what is refused, and reading back."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from attacks.base import NoiseOff, Silence, noise_from
from robustbench_sparse import shrinking
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.data import DATASETS
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json, save_weights, sha256, write_json
from robustbench_sparse.runs.seals import seal
from robustbench_sparse.runs.shrunk_file import load_shrunk
from robustbench_sparse.runs.targets import resolve_target
from robustbench_sparse.sparsity.counting import count_sparsity
from robustbench_sparse.sparsity.shrink.surgery import Shrunk
from tests.helpers.commands import call, one_line
from tests.helpers.small import small

pytest.importorskip("torch_pruning")

DEAD = 3  # of the 8 channels inside the first block


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two noisy networks, trained for one epoch, of which channels are then made dead in the file."""
    defenses = [{"name": "enresnet", "members": 2, "noise": 0.2}]
    config = small(runs={"noisy": {"defenses": defenses}}, evaluation={"limit": 8})
    config["train"]["epochs"] = 1
    config["attacks"] = {"fgsm": "fgsm"}
    torch.set_num_threads(1)
    results = tmp_path_factory.mktemp("shrink_results")
    run_benchmark(config, out=results, device="cpu")
    (folder,) = (results / "small" / "runs").iterdir()
    weights = load_file(folder / "model.safetensors")
    for name, w in weights.items():
        if name.endswith("blocks.0.block.conv2.weight"):
            w[:, :DEAD] = 0
    save_weights(folder / "model.safetensors", weights)
    training = read_json(folder / "training.json")
    names = [n for n in weights if n.endswith("blocks.0.block.conv2.weight")]
    asked = {"defense": "rgsm", "kind": "channel", "percent": 40.0, "binding": False, "names": names}
    digest = sha256(folder / "model.safetensors")
    write_json(folder / "training.json", {**training, "weights_sha256": digest, "asked": [asked]})
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def shrunk(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shrunk") / "small.safetensors"
    result = call("shrink", run, "-o", path)
    assert result.exit_code == 0, result.output
    assert "logits on 450 test images, noise off and equal noise on" not in result.stderr
    assert "Largest difference of the logits on" in result.stdout
    return path


# sparsity -------------------------------------------------------------------------------------------------


def test_layers_are_counted_in_the_file(run: Path) -> None:
    result = call("sparsity", run, "--format", "csv")
    assert result.exit_code == 0, result.output
    rows = {r["name"]: r for r in csv.DictReader(io.StringIO(result.stdout))}
    layer = rows["members.0.blocks.0.block.conv2"]
    assert (layer["kind"], layer["shape"], layer["weights"]) == ("Conv2d", "8x8x3x3", "576")
    assert (layer["zero_weights"], layer["zero_channels"], layer["channels"]) == ("216", "3", "8")
    assert (layer["zero_kernels"], layer["kernels"]) == ("24", "64")
    assert (layer["macs"], layer["sparse_macs"]) == (str(64 * 576), str(64 * 360))
    counts = count_sparsity(resolve_target(run).model, 1, 8)
    assert rows["total"]["macs"] == str(counts["macs"])
    assert rows["total"]["sparse_macs"] == str(counts["macs"] - 2 * 64 * 216)
    assert float(rows["total"]["zero_percent"]) == pytest.approx(counts["weight_sparsity"])


def test_a_claim_changes_nothing(run: Path, tmp_path: Path) -> None:
    before = call("sparsity", run).stdout
    claims = read_json(run / "sparsity.json")
    write_json(run / "sparsity.json", {**claims, "weight_sparsity": 99.0, "layers": []})
    assert call("sparsity", run).stdout == before
    write_json(run / "sparsity.json", claims)
    assert call("sparsity", run / "model.safetensors").stdout == before


def test_tables_for_people(run: Path) -> None:
    text = call("sparsity", run).stdout
    line = next(x for x in text.splitlines() if x.startswith("members.0.blocks.0.block.conv2"))
    assert line.split()[1:5] == ["Conv2d", "8x8x3x3", "576", "37.50"]
    asked = next(x for x in text.splitlines() if x.startswith("rgsm"))
    assert asked.split() == ["rgsm", "channels", "40", "37.50", "goal"]
    markdown = call("sparsity", run, "--format", "markdown").stdout
    assert "| members.0.blocks.0.block.conv2 | Conv2d | 8x8x3x3 | 576 | 37.50 | 3/8 |" in markdown
    assert one_line(call("sparsity", run, "--format", "latex")).startswith("--format: expected table, csv")


def test_a_factory_without_a_data_set_has_no_macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shrink_nets.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))\n"
    )
    text = call("sparsity", "shrink_nets:net").stdout
    assert "--dataset names them" in text
    rows = list(csv.DictReader(io.StringIO(call("sparsity", "shrink_nets:net", "--format", "csv").stdout)))
    assert [r["macs"] for r in rows] == ["", "", ""]
    rows = list(
        csv.DictReader(
            io.StringIO(call("sparsity", "shrink_nets:net", "--dataset", "digits", "--format", "csv").stdout)
        )
    )
    assert [float(r["macs"]) for r in rows] == [1920, 300, 2220]


# shrink ---------------------------------------------------------------------------------------------------


def test_the_file_holds_the_shrunk_network(run: Path, shrunk: Path) -> None:
    full, model = resolve_target(run).model, load_shrunk(shrunk)
    assert model.get_submodule("members.0.blocks.0.block.conv1").weight.shape == (5, 8, 3, 3)
    assert model.get_submodule("members.1.blocks.0.block.conv2").weight.shape == (8, 5, 3, 3)
    gone = 2 * DEAD * (8 * 9 + 8 * 9 + 2)  # of both members: filters, what read them, batch-norm
    report = read_json(shrunk.with_suffix(".json"))
    assert report["before"]["parameters"] - report["after"]["parameters"] == gone
    assert report["after"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["before"]["macs"] - report["after"]["macs"] == 2 * 64 * DEAD * (8 * 9 + 8 * 9)
    assert report["after"]["bytes"] == shrunk.stat().st_size
    assert report["before"]["bytes"] == (run / "model.safetensors").stat().st_size
    assert report["removed"]["members.0.blocks.0.block.conv1"] == [8, 5]
    assert {(r["device"], r["batch"]) for r in report["latency"]} >= {("cpu", 1), ("cpu", 128)}
    assert all(r["before_ms"] > 0 and r["after_ms"] > 0 for r in report["latency"])
    assert all(r["threads"] == torch.get_num_threads() for r in report["latency"] if r["device"] == "cpu")
    assert report["proof"]["noise"] is True
    x = DATASETS["digits"]().load().test_x[:64].float() / 255
    with torch.no_grad():
        assert (NoiseOff(full)(x) - NoiseOff(model)(x)).abs().max() < 1e-4


def test_a_shrunk_file_is_judged_like_the_run(run: Path, shrunk: Path, tmp_path: Path) -> None:
    options = ("--attacks", "fgsm", "--limit", "64", "--quiet", "--format", "csv", "--device", "cpu")
    options += ("--expect-clean", "0")  # channels were made dead by hand: it classifies no better than chance
    tables = [
        next(csv.DictReader(io.StringIO(call("evaluate", target, *options).stdout)))
        for target in (run, shrunk)
    ]
    assert tables[0]["dataset"] == tables[1]["dataset"]
    assert tables[0]["n"] == tables[1]["n"] == "64"
    assert abs(float(tables[0]["clean"]) - float(tables[1]["clean"])) < 8  # noise: two draws of the same law
    rows = list(csv.DictReader(io.StringIO(call("sparsity", shrunk, "--format", "csv").stdout)))
    assert rows[-1]["zero_weights"] == "0"


def test_shrinking_again_finds_nothing(shrunk: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    result = call("shrink", shrunk, "-o", again)
    assert result.exit_code == 0, result.output
    assert "no dead channels were found" in result.stdout
    a, b = load_file(shrunk), load_file(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_onnx_gives_the_same_logits(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, graph = tmp_path / "small.safetensors", tmp_path / "small.onnx"
    result = call("shrink", run, "-o", path, "--onnx", graph, "--format", "markdown")
    assert result.exit_code == 0, result.output
    assert "noise off" in result.stdout
    assert read_json(path.with_suffix(".json"))["onnx"]["bytes"] == graph.stat().st_size
    session = onnxruntime.InferenceSession(graph.read_bytes(), providers=["CPUExecutionProvider"])
    x = DATASETS["digits"]().load().test_x[:7].float() / 255
    model = load_shrunk(path)
    with torch.no_grad(), noise_from(model, Silence()):
        wanted = model(x)
    for count in (1, 2, 7):
        (got,) = session.run(["logits"], {"images": x[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(got), wanted[:count], rtol=0, atol=1e-4)


def test_a_factory_is_named_again_to_read_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shrink_more.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))\n"
        "    net[3].weight.data[:, :12] = 0\n"
        "    return net\n"
    )
    path = tmp_path / "net.safetensors"
    assert "--dataset" in one_line(call("shrink", "shrink_more:net", "-o", path))
    result = call("shrink", "shrink_more:net", "-o", path, "--dataset", "digits")
    assert result.exit_code == 0, result.output
    assert load_file(path)["1.weight"].shape == (18, 64)
    assert "shrink_more:net --weights net.safetensors" in one_line(call("sparsity", path))
    rows = list(
        csv.DictReader(
            io.StringIO(call("sparsity", "shrink_more:net", "--weights", path, "--format", "csv").stdout)
        )
    )
    assert rows[0]["shape"] == "18x64"


# What is refused ------------------------------------------------------------------------------------------


def test_a_shrinker_that_drops_a_live_channel_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: nn.Module, example: torch.Tensor) -> Shrunk:
        import copy

        wrong = copy.deepcopy(model)
        wrong.get_submodule("members.0.blocks.0.block.conv2").weight.data[:, DEAD] = 0
        return Shrunk(wrong, {"members.0.blocks.0.block.conv1": (8, 7)})

    monkeypatch.setattr(shrinking, "shrink_network", broken)
    path = tmp_path / "wrong.safetensors"
    message = one_line(call("shrink", run, "-o", path, "--onnx", tmp_path / "wrong.onnx"))
    assert message.startswith("refused: the shrunk network's logits are off by ")
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_written_over(run: Path, shrunk: Path, tmp_path: Path) -> None:
    before = shrunk.read_bytes()
    assert "--force writes over it" in one_line(call("shrink", run, "-o", shrunk))
    assert shrunk.read_bytes() == before
    assert call("shrink", run, "-o", shrunk, "--force").exit_code == 0
    assert shrunk.read_bytes() == before
    assert "ends in .safetensors" in one_line(call("shrink", run, "-o", tmp_path / "a.pt"))
    assert "ends in .onnx" in one_line(
        call("shrink", run, "-o", tmp_path / "a.safetensors", "--onnx", tmp_path / "a.pb")
    )


@pytest.mark.parametrize(
    ("missing", "options"),
    [("torch_pruning", ()), ("onnxscript", ("--onnx",)), ("onnxruntime", ("--onnx",))],
)
def test_a_missing_extra_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, options: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    more = [*options, *([tmp_path / "a.onnx"] if options else [])]
    message = one_line(call("shrink", run, "-o", tmp_path / "a.safetensors", *more))
    assert message.endswith("is not installed: pip install 'robustbench_sparse[shrink]'")
    assert list(tmp_path.iterdir()) == []


def altered(source: Path, target: Path, about: Any = None, flip: bool = False) -> Path:
    """A copy of a shrunk network's file whose record is changed, or one of its weights."""
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        record = json.loads(file.metadata()["robustbench_sparse"])
    if about is not None:
        about(record)
    if flip:
        tensors["members.0.linear.bias"][3] += 0.5
    save_file(tensors, target, {"robustbench_sparse": json.dumps(record)})
    return target


def wider(record: dict[str, Any]) -> None:
    record["widths"]["members.0.linear"] = [16, 11]


def other_widths(record: dict[str, Any]) -> None:
    record["widths"]["members.0.blocks.0.block.conv1"] = [8, 4]


def foreign_code(record: dict[str, Any]) -> None:
    record["run"]["record"]["model"] = {"name": "shrink_trap:Net"}


def bare_name(record: dict[str, Any]) -> None:
    record["run"]["record"]["model"] = "shrink_trap:Net"


def other_format(record: dict[str, Any]) -> None:
    record["format"] = 99


def no_record(record: dict[str, Any]) -> None:
    del record["run"]["record"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (wider, "members.0.linear: expected widths of 1 to"),
        (other_widths, "weights of another architecture"),
        (foreign_code, "refused: it names code from elsewhere, 'shrink_trap:Net'"),
        (bare_name, "refused: it names code from elsewhere, 'shrink_trap:Net'"),
        (other_format, "expected format 1"),
        (no_record, "damaged"),
    ],
)
def test_a_file_with_another_record_is_one_line(
    shrunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shrink_trap.py").write_text("raise SystemExit('the trap was imported')\n")
    assert message in one_line(call("sparsity", altered(shrunk, tmp_path / "other.safetensors", about)))


def test_changed_and_cut_files_are_one_line(shrunk: Path, tmp_path: Path) -> None:
    changed = altered(shrunk, tmp_path / "changed.safetensors", flip=True)
    assert "have changed since it was written" in one_line(call("evaluate", changed, "--attacks", "fgsm"))
    same = altered(shrunk, tmp_path / "same.safetensors")
    assert call("sparsity", same).exit_code == 0
    cut = tmp_path / "cut.safetensors"
    for length in (4, 500, shrunk.stat().st_size - 7):
        cut.write_bytes(shrunk.read_bytes()[:length])
        assert "not a readable checkpoint" in one_line(call("sparsity", cut))
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    assert "does not say how to build its network" in one_line(call("sparsity", plain))
    with pytest.raises(UserError, match="no such file"):
        load_shrunk(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("verb", ["sparsity", "shrink"])
def test_help_has_examples(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert f"robustbench-sparse {verb} " in result.stdout.partition("Examples:")[2]
    assert max(map(len, result.stdout.splitlines())) <= 80
