"""How long a network takes for one image here: the one number of a report that is measured while it is made."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence

import torch

from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.pages.boards import Entry
from robustbench_sparse.pages.gallery import Images
from robustbench_sparse.pages.rows import slug
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder

WARM_UP, REPEATS = 3, 15


def latencies_of(
    entries: Sequence[Entry], show: Progress, images: Images | None = None
) -> tuple[dict[str, float], str]:
    """Median time of one image, of every row whose network is here; and the machine that it was measured on.

    Zeros are multiplied like all other weights: what they save stands in the columns of multiplications.

    Args:
        entries: rows.
        show: progress.
        images: the data sets, for the size of their images; a network of the zoo says its own.

    Returns:
        Row's id -> milliseconds, and a line about processor and threads.
    """
    images = images or Images()
    there = [e for e in entries if e.folder is not None]
    task, found = show.start("latencies", len(there), "networks"), {}
    for entry in there:
        with contextlib.suppress(
            UserError
        ):  # a row that is not trained yet, or whose images are not here, has no latency
            found[slug(entry)] = 1000 * _seconds(entry, images)
        task.advance(1)
    task.close()
    machine = describe(torch.device("cpu"))
    return found, f"{machine['processor']}, {torch.get_num_threads()} thread(s), one image at a time, float32"


def _seconds(entry: Entry, images: Images) -> float:
    if entry.folder is None:
        raise UserError("no folder")
    run = RunFolder.at(entry.folder)
    if (entry.folder / names.ZOO).is_file():
        size = read_json(entry.folder / names.ZOO)["images"]
        channels, side, classes = size["channels"], size["size"], size["classes"]
    else:
        data = images.of(entry.folder)
        channels, side, classes = data.channels, data.size, len(data.classes)
    model, x = run.network(channels, side, classes), torch.full((1, channels, side, side), 0.5)
    times = []
    with torch.inference_mode():
        for number in range(WARM_UP + REPEATS):
            began = time.perf_counter()
            model(x)
            if number >= WARM_UP:
                times.append(time.perf_counter() - began)
    return statistics.median(times)
