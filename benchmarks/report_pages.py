"""How long a report of many rows takes, what memory and disk: ``python -m benchmarks.report_pages [ROWS] [IMAGES]``.

The rows are fabricated: verdicts drawn at random, a small network each, no training. ``--open`` times a browser, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.files import save_weights, sha256, write_text
from robustbench_sparse.pages.serving import Watched
from robustbench_sparse.pages.writing import Wishes, write_report
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import seal

THREAT = {"norm": "linf", "eps": 8 / 255}
SETTINGS = {name: {"name": name, "threat": THREAT} for name in ("fgsm", "pgd", "apgd", "square")}

SHAPES = ((32, 3, 3, 3), (64, 32, 3, 3), (10, 512))  # of the weights


def main() -> None:
    """Measure, print, and write a line of CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=200)
    parser.add_argument("images", type=int, nargs="?", default=10_000)
    parser.add_argument("--open", action="store_true", help="open it in Debian's chromium and time that")
    parser.add_argument("--csv", type=Path, help="written here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        results, out = Path(home, "many"), Path(home, "report")
        fabricate(results, options.rows, options.images)
        began, spent = time.perf_counter(), time.process_time()
        write_report([results], out, Wishes())
        facts = {
            "processor": describe(torch.device("cpu"))["processor"],
            "rows": options.rows,
            "images": options.images,
            "build_seconds": round(time.perf_counter() - began, 1),
            "build_processor_seconds": round(time.process_time() - spent, 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "size_mb": round(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6, 1),
        }
        if options.open:
            facts |= opened(out)
        facts |= renewed(Path(home), options.rows, options.images)
    print(json.dumps(facts, indent=1))
    if options.csv:
        write_text(options.csv, ",".join(facts) + "\n" + ",".join(map(str, facts.values())) + "\n")


def fabricate(folder: Path, rows: int, images: int, first: int = 0) -> None:
    """A benchmark's folder as ``run`` leaves it, with drawn verdicts."""
    entries = [{"run_id": f"row{i}-s0", "run": f"row{i}", "seed": 0} for i in range(rows)]
    facts = {
        "name": folder.name, "dataset": "drawn", "attacks": list(SETTINGS), "settings": SETTINGS, "threat": THREAT,
        "certificate": "off", "runs": entries, "published": {},
    }  # fmt: skip
    for i, entry in enumerate(entries):
        if i >= first:
            _row(folder / names.RUNS / str(entry["run_id"]), entry, np.random.RandomState(i), images)
    write_text(folder / names.BENCHMARK, json.dumps(facts))


def _row(home: Path, entry: dict[str, object], random: np.random.RandomState, images: int) -> None:
    weights = {
        "0.weight": torch.from_numpy(random.randn(32, 3, 3, 3)).float(),
        "1.weight": torch.randn(10, 512),
    }
    save_weights(home / names.WEIGHTS, weights)
    write_text(
        home / names.RUN,
        json.dumps({**entry, "model": "drawn", "defenses": "pgd_at(steps=7)", "threat": THREAT}),
    )
    write_text(home / names.ENVIRONMENT, json.dumps({"commit": "0"}))
    training = {
        "status": "complete",
        "reason": "",
        "train_seconds": 1.0,
        "selected": {},
        "last": {},
        "asked": [],
    }
    write_text(
        home / names.TRAINING, json.dumps({**training, "weights_sha256": sha256(home / names.WEIGHTS)})
    )
    counts = (
        "weight_sparsity",
        "channel_sparsity",
        "kernel_sparsity",
        "row_sparsity",
        "parameters",
        "nonzero_parameters",
        "macs",
    )
    write_text(home / names.SPARSITY, json.dumps(dict.fromkeys(counts, 0)))
    label = random.randint(0, 10, images)
    stands, strength = random.rand(images) < 0.9, random.rand() / 2
    for name in (names.CLEAN, *SETTINGS):
        right = stands if name == names.CLEAN else stands & (random.rand(images) > strength)
        table = pd.DataFrame({"index": range(images), "label": label, "correct": right.astype(float)})
        guess = np.where(right, label, (label + 1) % 10)
        table = table.assign(
            pred=guess, adv_pred=guess, adv_correct=right.astype(float), linf=0.03, l2=1.0, status="ok"
        )
        (home / names.verdicts(name)).parent.mkdir(exist_ok=True)
        table.to_csv(home / names.verdicts(name), index=False)
        key = {"identity": "w", "attack": SETTINGS.get(name, {})}
        about = {"status": "ok", "reason": "", "n": images, "seconds": 1.0, "bounded": True, "key": key}
        write_text(home / names.account(name), json.dumps(about))
    seal(home)


def opened(out: Path) -> dict[str, float]:
    """Seconds until Chromium has the leaderboard's script done."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto("about:blank")
        began = time.perf_counter()
        page.goto((out / "index.html").as_uri())
        page.wait_for_selector("#count:not(:empty)")
        seconds = time.perf_counter() - began
        browser.close()
    return {"open_seconds": round(seconds, 2)}


def renewed(home: Path, rows: int, images: int) -> dict[str, float]:
    """Seconds from a new row of a benchmark of so many until ``serve`` has it in its pages."""
    results = home / "watched"
    fabricate(results, rows, images)
    watched = Watched([results], home / "served", Wishes(live=True), print)
    watched.look()
    fabricate(results, rows + 1, images, first=rows)
    began = time.perf_counter()
    watched.look()
    return {"renewed_seconds": round(time.perf_counter() - began, 2)}


if __name__ == "__main__":
    main()
