"""``python -m benchmarks.make_zoo RUN NAME``: take a finished run's network into the zoo; see ``docs/zoo.md``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.images import find_root
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.zoo.adding import add


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_zoo", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run that is trained, judged and certified")
    parser.add_argument("name", help="<data>/<network>, as in mnist/lenet-trades")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: RBS_DATA)")
    parser.add_argument("--refuted-too", action="store_true", help="take it though its number is refuted")
    options = parser.parse_args(arguments)
    try:
        root = find_root(options.data_root)
        folder = add(options.run, options.name, data_root=root, refuted_too=options.refuted_too)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
