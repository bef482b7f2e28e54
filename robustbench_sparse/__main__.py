"""``python -m robustbench_sparse``: the same as the command ``robustbench-sparse``."""

from robustbench_sparse.cli.main import main

if __name__ == "__main__":
    main()
