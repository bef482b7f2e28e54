"""``python -m benchmarks.hidden_zoo``: does the judge see through networks that tell an evaluation from use?

For each network of ``tests/helpers/hidden_zoo.py``: what an evaluation without checks says, what an outsider's images
leave to an ordinary user, and what ``robustbench_sparse.evaluate`` says with the suite ``standard`` and the quick
certificate. One JSON file a network; what is there is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.images import find_root
from robustbench_sparse.config.plugins import build
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.loading import load_dataset, prepare_data
from robustbench_sparse.foundation.files import write_json
from tests.helpers.hidden_base import TRAINED, plain_net
from tests.helpers.hidden_zoo import HIDDEN, naive, outsiders, true_accuracy

EPS = 0.21  # between two steps of the 8-bit grid, as most radii are; a plain network has nothing left there
TRAINING = 12_000  # images
NETWORKS = "networks.pt"
CLOSE = 5.0  # points


class Zoo:
    """Data and the plain network, trained once per folder.

    Args:
        data: ``mnist`` or ``digits``.
        root: folder of the data sets, or None.
        out: folder of the results.
        images: test images looked at; the same that the judge takes with this limit.
    """

    def __init__(self, data: str, root: Path | None, out: Path, images: int) -> None:
        self.data, self.root, self.out, self.images = data, root, out, images
        base: Any = object
        read = load_dataset(build(DATASETS, {"name": data}, "data", base), root)
        parts = prepare_data(read, torch.device("cpu"), train_limit=TRAINING, test_limit=images)
        self.train_x, self.train_y = parts.gather("train", torch.arange(parts.count("train")))
        self.x, self.y = parts.gather("test", torch.arange(parts.count("test")))
        self.base = self._base()
        self.made: dict[int, list[Tensor]] = {}

    def _base(self) -> nn.Module:
        path = self.out / NETWORKS
        if path.exists():
            base, trained = torch.load(path, weights_only=False)  # this script's own file
            TRAINED.update(trained)
            return base  # type: ignore[no-any-return]
        base = plain_net(self.train_x, self.train_y, epochs=4 if self.data == "mnist" else 60)
        for name in ("counter", "kwta"):  # their networks are trained as they are made
            HIDDEN[name](base, self.train_x, self.train_y, EPS)
        torch.save((base, TRAINED), path)
        return base

    def make(self, name: str) -> nn.Module:
        """A fresh network of the zoo."""
        return HIDDEN[name](self.base, self.train_x, self.train_y, EPS)

    @property
    def dead(self) -> Tensor:
        """Pixels that no training image uses."""
        return self.train_x.amax(0) == 0

    def true(self, make: Callable[[], nn.Module], seed: int) -> float:
        """What is left to users, in percent."""
        if seed not in self.made:
            self.made[seed] = outsiders(self.base, self.x, self.y, EPS, self.dead, seed=seed)
        return true_accuracy(make, self.made[seed], self.x, self.y, EPS, self.dead, seed=seed)

    def judge(self, name: str, folder: Path) -> dict[str, Any]:
        """What the tool says of a fresh network."""
        import robustbench_sparse

        row = robustbench_sparse.evaluate(
            self.make(name),
            dataset=self.data,
            norm="linf",
            eps=EPS,
            suite="standard",
            limit=self.images,
            data_root=self.root,
            out=folder,
            changes=["evaluation.certificate=quick"],
        ).iloc[-1]
        return {
            key: row[key] if isinstance(row[key], str) else float(row[key])
            for key in ("verdict", "flags", "clean", "worst")
            if key in row
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure, then judge; print the table. 0, whatever was found."""
    options = _options(arguments)
    torch.set_num_threads(1)
    out: Path = options.out / options.data
    out.mkdir(parents=True, exist_ok=True)
    zoo = Zoo(options.data, find_root(options.data_root), out, options.images)
    if options.judge_one:
        write_json(out / f"{options.judge_one}.judged", zoo.judge(options.judge_one, out / options.judge_one))
        return 0
    plain = _measured(zoo, "", options.seed)
    print(
        f"plain network: clean {plain['clean']:.1f}, worst {plain['worst']:.1f}, true {plain['true']:.1f}",
        flush=True,
    )
    for name in options.names:
        facts = _measured(zoo, name, options.seed)
        print(_line(name, facts, plain), flush=True)
    if not options.no_judge:
        print("judged:", flush=True)
        for name in options.names:
            print(_line(name, _judged(zoo, name, options), plain), flush=True)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hidden_zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HIDDEN)} (default: all)")
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the attacks measured here")
    parser.add_argument("--out", type=Path, default=Path("results/hidden_zoo"))
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: RBS_DATA)")
    parser.add_argument("--no-judge", action="store_true", help="only measure what is naive and what is true")
    parser.add_argument("--again", action="store_true", help="judge anew what was judged before")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of judging one network")
    parser.add_argument("--judge-one", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.names = options.names or list(HIDDEN)
    unknown = sorted(set(options.names) - set(HIDDEN))
    if unknown:
        parser.error(f"no network {unknown[0]!r}; there are: {', '.join(HIDDEN)}")
    return options


def _measured(zoo: Zoo, name: str, seed: int) -> dict[str, Any]:
    """Clean, naive and true accuracy, from the network's file or measured; "" is the plain network."""
    path = zoo.out / f"{name or 'plain'}.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    asked = {"images": zoo.images, "seed": seed, "eps": EPS}
    if any(facts.get(key) != value for key, value in asked.items()):

        def make() -> nn.Module:
            return zoo.make(name) if name else zoo.base

        facts = {**asked, **naive(make(), zoo.x, zoo.y, EPS, seed=seed), "true": zoo.true(make, seed)}
        write_json(path, facts)
    return facts


def _judged(zoo: Zoo, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The network's facts with the tool's words, from its file or from a process of its own."""
    path = zoo.out / f"{name}.json"
    facts: dict[str, Any] = json.loads(path.read_text())
    if "judged" in facts and not options.again:
        return facts
    said = zoo.out / f"{name}.judged"
    said.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.hidden_zoo", "--judge-one", name, "--data", options.data]
    command += ["--images", str(options.images), "--out", str(options.out)]
    command += ["--data-root", str(options.data_root)] if options.data_root else []
    began, folder = time.monotonic(), zoo.out / name
    if options.again and folder.exists():
        folder.rename(zoo.out / f"{name}-until-{int(time.time())}")
    with (zoo.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = process.wait(options.seconds)
        except subprocess.TimeoutExpired:
            code = f"not finished in {options.seconds:g} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    judged = json.loads(said.read_text()) if said.exists() else {"verdict": f"none: {code}"}
    facts["judged"] = {**judged, "seconds": round(time.monotonic() - began)}
    said.unlink(missing_ok=True)
    write_json(path, facts)
    return facts


def _line(name: str, facts: dict[str, Any], plain: dict[str, Any]) -> str:
    text = (
        f"{name:20} clean {facts['clean']:5.1f}  pgd50 {facts['pgd50']:5.1f}  square {facts['square']:5.1f}"
    )
    text += f"  naive {facts['worst']:5.1f}  true {facts['true']:5.1f}"
    text += "" if abs(facts["true"] - plain["true"]) <= CLOSE else "  (true: not the plain network's)"
    judged = facts.get("judged")
    if judged is None:
        return text + ("" if facts["worst"] >= facts["true"] + 20 else "  (fools no naive evaluation)")
    worst = judged.get("worst")
    text += f"  | {judged['verdict']}" + ("" if worst is None else f", worst {worst:.1f}")
    wrong = judged["verdict"] == "believable" and worst is not None and worst > facts["true"] + CLOSE
    return f"{text}, {judged['seconds']} s  {judged.get('flags', '')}" + ("  MISSED" if wrong else "")


if __name__ == "__main__":
    sys.exit(main())
