"""The schema of a benchmark file: which keys there are, their types and their defaults."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attacks.base import Threat

Entry = dict[str, Any]

# Beyond any use, and short of what overflows somewhere later.
MOST_IMAGES, MOST_EPS, MOST_SECONDS = 1_000_000_000, 1e6, 10_000_000
MOST_NAME = 100  # characters of a name or label: folders are named by them, with a seed and a hash behind


Level = Literal["off", "quick", "full"]  # of a certificate, from none to the most
LEVELS = get_args(Level)
Selection = Literal["best", "adversarial", "last"]  # of an epoch


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ThreatConfig(_Strict):
    """The adversary's set: norm and radius."""

    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(8 / 255, ge=0)

    @model_validator(mode="after")
    def _eps_in_pixel_range(self) -> ThreatConfig:
        # Pixels lie in [0, 1]. Beyond 1, l_inf bounds nothing: what is meant is 8/255, or no bound (.inf).
        if self.norm == "linf" and 1 < self.eps < math.inf:
            raise ValueError(
                "expected a radius eps of at most 1 for linf, in units of the pixel range (8/255, not 8)"
            )
        if MOST_EPS < self.eps < math.inf:
            raise ValueError(f"expected a radius eps of at most {MOST_EPS:g}, or .inf")
        return self

    @model_validator(mode="after")
    def _eps_of_l2(self) -> ThreatConfig:
        # 8/255 is a radius for l_inf; as an l2 radius it would make any network look robust.
        if self.norm == "l2" and "eps" not in self.model_fields_set:
            raise ValueError("expected the radius eps, too, for the norm l2")
        return self

    def threat(self) -> Threat:
        """The same as the attacks know it."""
        return Threat(norm=self.norm, eps=self.eps)


class EvaluationConfig(_Strict):
    """How networks are judged.

    Attributes:
        batch_size: images attacked at once; ``auto`` is chosen by measurement.
        precision: of the copy that attacks climb on. Whatever is found in ``bf16`` is judged in float32 on the
            network itself, and attacked again there where it does not hold. ``auto`` takes what is measured to be
            faster.
        compile: whether that copy is compiled; ``auto`` where it is measured to be faster and the work is worth it.
        engine: ``shrunk`` makes that copy without the network's dead channels, ``dense`` with them; ``auto`` without
            them where this saves a fifth of the multiplications and the work is worth it. Verdicts are the network's.
        draws: fresh passes that a random network's verdict on an image is averaged over.
        limit: judge only so many test images, a fixed random choice; None means all.
        certificate: how far to examine whether the numbers can be believed, on a part of the images: ``off``, ``quick``
            (about a minute for a small network) or ``full``.
        certificate_seconds: the time that the certificate may plan with, spent on the most telling checks first; it
            says which it left out. None means all checks.
        checks: the certificate's further checks, of one's own: ``package.module:NAME`` of a ``Check`` each.
        shards: parts of the test images of every attack that processes without a row may work on; 1: a row is one
            process's alone. It changes no number.
    """

    batch_size: Annotated[int, Field(gt=0, le=MOST_IMAGES)] | Literal["auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    engine: Literal["auto", "dense", "shrunk"] = "auto"
    draws: int = Field(10, gt=0, le=100_000)
    limit: int | None = Field(None, gt=0, le=MOST_IMAGES)
    certificate: Level = "off"
    certificate_seconds: int | None = Field(None, gt=0, le=MOST_SECONDS)
    checks: list[str] = Field([], max_length=100)
    shards: int = Field(1, gt=0, le=10_000)

    @model_validator(mode="after")
    def _seconds_of_a_certificate(self) -> EvaluationConfig:
        if self.certificate_seconds is not None and self.certificate == "off":
            raise ValueError("expected certificate: quick or full with certificate_seconds")
        return self

    @field_validator("checks")
    @classmethod
    def _checks(cls, checks: list[str]) -> list[str]:
        if len(set(checks)) != len(checks) or not all(":" in name for name in checks):
            raise ValueError("expected different names as in package.module:CHECK")
        return checks


class AugmentConfig(_Strict):
    """Random crop after zero padding by ``crop`` pixels, and horizontal flip."""

    crop: int = Field(0, ge=0, le=1024)
    flip: bool = False


class StageConfig(_Strict):
    """One stage of training.

    Attributes:
        epochs: passes over the training part.
        batch_size: images per step.
        optimizer, schedule: plug-ins.
        augment: what happens to the images first.
        selection: ``best`` keeps the epoch with the best validation accuracy of the deployed network,
            ``adversarial`` the one with the best under IFGSM-10 in the benchmark's threat (on at most 1 000 validation
            images), ``last`` the last. By default ``adversarial`` where a defense trains on attacked images, else
            ``best``.
        select_after: the first epoch (from 0, within the stage) that may be selected.
        snapshots: the deployed network is kept after so many epochs of the stage; 0: before its first. A snapshot
            changes no number, and so is no part of the run's id.
        precision: ``bf16`` runs forward passes, and attacks in training, under bfloat16 autocast; judging is always
            float32.
        compile: ``on`` compiles both. Like the precision it changes the numbers, and so belongs to the run's id.
        devices: processes that train the network, each on its part of every minibatch, whose size stays ``batch_size``;
            on GPUs one each, on a CPU they share the threads. The same in all stages. More than 1 belongs to the run's
            id: numbers differ by rounding.
    """

    epochs: int = Field(..., gt=0, le=1_000_000)
    batch_size: int = Field(128, gt=0, le=MOST_IMAGES)
    optimizer: Entry = Field(default_factory=lambda: {"name": "sgd", "lr": 0.1})
    schedule: Entry = Field(default_factory=lambda: {"name": "constant"})
    augment: AugmentConfig = AugmentConfig()
    selection: Selection | None = None
    select_after: int = Field(0, ge=0, le=1_000_000)
    snapshots: list[int] = Field([], max_length=1000)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["on", "off"] = "off"
    devices: int = Field(1, gt=0, le=1024)

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _bare_name(cls, entry: Any) -> Any:
        return {"name": entry} if isinstance(entry, str) else entry

    @field_validator("snapshots")
    @classmethod
    def _snapshots(cls, snapshots: list[int]) -> list[int]:
        if len(set(snapshots)) != len(snapshots) or any(passed < 0 for passed in snapshots):
            raise ValueError("expected different whole numbers >= 0")
        return snapshots


class ResourcesConfig(_Strict):
    """What one row takes of a machine while it is trained and judged; no part of the run's id.

    Attributes:
        cpus: processors; also the threads that a row computes with, unless ``threads`` says otherwise. None: as many as
            it has threads.
        gpus: graphics processors, whole ones or a part of one.
        memory: GiB; None asks for nothing.
        minutes: the time that SLURM gives a job, after which it is queued again and goes on; None: the default there.
        slurm: what else ``sbatch`` is told, as in ``{partition: gpu, account: mine}``.
    """

    cpus: float | None = Field(None, gt=0, le=1024)
    gpus: float = Field(0, ge=0, le=1024)
    memory: float | None = Field(None, gt=0, le=1_000_000)
    minutes: int | None = Field(None, gt=0, le=1_000_000)
    slurm: dict[str, str | int] = {}

    @field_validator("cpus", "gpus")
    @classmethod
    def _whole_or_a_part(cls, count: float | None) -> float | None:
        if count is not None and count > 1 and count != int(count):
            raise ValueError("expected a whole number, or a part of one")
        return count


class TwinConfig(_Strict):
    """A dense twin: a thinner network with as many weights as another row's has left.

    Attributes:
        row: label of the other row.
        sparsity: its share of zero weights in percent; None: what its methods are asked for.
    """

    row: str
    sparsity: float | None = Field(None, gt=0, lt=100)


class RunConfig(_Strict):
    """One row of the benchmark: a network, its defenses, and what differs from the training defaults.

    ``dense_twin`` makes it the dense twin of another row, whose network, defenses and training it takes over as far as
    they make nothing sparse.
    """

    model: str | Entry | None = None
    defenses: list[str | Entry] = []
    train: Entry = {}
    dense_twin: str | TwinConfig | None = None
    resources: ResourcesConfig = ResourcesConfig()


class PublishedConfig(_Strict):
    """Published values: a CSV with a column ``run`` and columns named as in the leaderboard, or values."""

    file: str | None = None
    values: dict[str, dict[str, float]] = {}


class BenchmarkConfig(_Strict):
    """The whole file. ``train`` holds a stage's settings, and ``stages`` in it a list of changes to them.

    A ``suite`` comes before the ``attacks``, one of which replaces the suite's of the same label. ``shifts`` are images
    without an adversary, such as noisy ones; their labels are columns as those of attacks are. Seeds are different
    whole numbers in [0, 2^31), names and labels have at most 100 characters.
    """

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=MOST_NAME)
    source: str = Field("", max_length=1000)
    task: str | Entry = "classify"
    data: str | Entry
    validation: int = Field(0, ge=0, le=MOST_IMAGES)
    train_limit: int | None = Field(None, gt=0, le=MOST_IMAGES)
    threat: ThreatConfig = ThreatConfig()
    suite: Literal["quick", "standard", "full"] | None = None
    attacks: dict[str, str | Entry] = {}
    shifts: dict[str, str | Entry] = {}
    evaluation: EvaluationConfig = EvaluationConfig()
    seeds: list[int] = Field([0], min_length=1, max_length=10_000)
    threads: int | None = Field(None, gt=0, le=1024)
    resources: ResourcesConfig = ResourcesConfig()
    model: str | Entry | None = None
    train: Entry
    runs: dict[str, RunConfig] = Field(..., min_length=1)
    published: PublishedConfig = PublishedConfig()

    @field_validator("runs", mode="before")
    @classmethod
    def _runs(cls, runs: Any) -> Any:
        # `natural:` with nothing behind it is a run without defenses.
        return {k: {} if v is None else v for k, v in runs.items()} if isinstance(runs, dict) else runs

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("expected different whole numbers >= 0")
        if max(seeds) >= 2**31:
            raise ValueError("expected whole numbers below 2^31")
        return seeds

    def resources_of(self, label: str) -> ResourcesConfig:
        """What a row takes: its own ``resources`` where it has them, else those of all rows."""
        own = self.runs[label].resources if label in self.runs else ResourcesConfig()
        return self.resources.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


class NetworkConfig(BenchmarkConfig):
    """What a given network is judged by: a benchmark that trains nothing."""

    train: Entry = {}
    runs: dict[str, RunConfig] = Field({}, max_length=0)
