"""Where the rows of a benchmark are worked on: this machine, a cluster of Ray's, or SLURM.

One unit is one row: a run and its seed, trained, judged and certified by one process. Its folder is the truth; a unit
answers with two words. What may begin is decided by what has been trained (``driver``), who works on what by leases
(``foundation.leases``), where and when by the engine. Ray and submitit are imported when they are asked for.
"""

from __future__ import annotations

from robustbench_sparse.backends.base import Backend
from robustbench_sparse.foundation.errors import UserError, near

# What is heavy is imported where it is chosen: every unit elsewhere passes through here.

NAMES = ("local", "ray", "slurm")


def backend_of(name: str, *, jobs: int | None = None, ray_address: str | None = None) -> Backend:
    """A back end by its name.

    Args:
        name: one of ``NAMES``.
        jobs: rows side by side at most; None leaves it open.
        ray_address: ``local``, ``auto`` or HOST:PORT, for ``ray`` alone.

    Raises:
        UserError: another name, or an address without Ray.
    """
    if name not in NAMES:
        raise UserError(f"--backend: expected one of {', '.join(NAMES)}, got {name!r}{near(name, NAMES)}")
    if ray_address is not None and name != "ray":
        raise UserError("--ray-address: expected with --backend ray")
    if name == "ray":
        from robustbench_sparse.backends.joining import LOCAL
        from robustbench_sparse.backends.on_ray import OnRay

        return OnRay(jobs=jobs, address=ray_address or LOCAL)
    if name == "slurm":
        from robustbench_sparse.backends.on_slurm import OnSlurm

        return OnSlurm(jobs=jobs)
    from robustbench_sparse.backends.local import Local

    return Local(jobs=jobs)
