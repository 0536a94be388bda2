"""Frozen dataclasses that say everything a stage can be told. `configs/*.toml` and dotted overrides fill them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from pnet_jax.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """How signals are cleaned (`nilearn.signal.clean`) and which scans are long enough.

    Attributes:
      strategy: `load_confounds` strategies for fMRIPrep inputs, e.g. `("motion", "high_pass", "wm_csf")`; empty uses none.
      motion: `load_confounds` motion model.
      wm_csf: `load_confounds` white-matter and CSF model.
      global_signal: `load_confounds` global-signal model, used where the strategy asks for it.
      fd_threshold: framewise displacement in mm above which a frame is scrubbed; only with `"scrub"` in the strategy.
      std_dvars_threshold: standardised DVARS above which a frame is scrubbed.
      scrub: shortest run of good frames that is kept between scrubbed ones.
      low_pass: upper edge of the band in Hz; None leaves it open.
      high_pass: lower edge of the band in Hz.
      detrend: remove the linear trend.
      wide: keep the signals before the low-pass as well, half as much memory again: the second view that guided edges gain by.
      halves: clean each half of the scan on its own as well, which choosing and judging parcels needs; as much memory again.
      min_frames: fewer kept frames than this is an error.
      min_seconds: less kept signal than this is an error.
      warn_seconds: less kept signal than this is a warning.
    """

    strategy: tuple[str, ...] = ("motion", "wm_csf")
    motion: str = "full"
    wm_csf: str = "basic"
    global_signal: str = "basic"
    fd_threshold: float = 0.5
    std_dvars_threshold: float = 1.5
    scrub: int = 5
    low_pass: float | None = 0.1
    high_pass: float | None = 0.009
    detrend: bool = True
    wide: bool = False
    halves: bool = True
    min_frames: int = 30
    min_seconds: float = 60.0
    warn_seconds: float = 240.0

    def __post_init__(self):
        _at_least(self, 0, "fd_threshold", "std_dvars_threshold", "scrub", "low_pass", "high_pass")
        _at_least(self, 0, "min_frames", "min_seconds", "warn_seconds")
        if self.low_pass and self.high_pass and self.high_pass >= self.low_pass:
            raise SettingsError(
                f"{type(self).__name__}: expected high_pass below low_pass, got high_pass = {self.high_pass} Hz and low_pass = "
                f"{self.low_pass} Hz; 0 leaves an edge open"
            )


@dataclasses.dataclass(frozen=True)
class SimulateConfig:
    """A cohort with known truth (METHOD: simulator).

    Attributes:
      subjects: how many.
      sessions: sessions of each subject.
      tier: `"easy"`, `"medium"`, `"hard"` or `"real"`; the last is as hard as a real scan.
      resolution: voxel size in mm: 4, 3 or 2.
      parcels: true parcels, even.
      minutes: length of a session.
      tr: repetition time in seconds; None takes the site's (2.0 s at the first).
      sites: how many of the sites A–D take part.
      patients: share of the subjects with the planted disease.
      severity: 0…1.
      seed: of everything random.
    """

    subjects: int = 4
    sessions: int = 2
    tier: str = "medium"
    resolution: int = 4
    parcels: int = 100
    minutes: float = 10.0
    tr: float | None = None
    sites: int = 1
    patients: float = 0.0
    severity: float = 1.0
    seed: int = 0


LABELS = ("auto", "personalised", "atlas")


@dataclasses.dataclass(frozen=True)
class ConstructConfig:
    """Networks from scans.

    Attributes:
      parcels: K of the checkpoint's own prior; ignored where a prior file is given, unless the two disagree (an error).
      prior: dseg or dlabel file to start from; None takes the checkpoint's.
      checkpoint: name of a shipped model, or folder of a checkpoint.
      edges: measures, see `pnet_jax.edges.names()`.
      kappa: concentration; None measures it on each scan.
      beta: weight of the neighbours; None measures it on each scan.
      labels: Parcels to return: `"auto"` personalised ones where the scan supports them and those of the atlas otherwise,
        `"personalised"` always, `"atlas"` never, for comparisons with a fixed atlas.
      min_coverage: parcels the scan covers less of are named in the report.
      dynamics: fine-tune model and parcels on each scan, informed by the dynamics of its parcels; needs a `group` with dynamics.
      group: folder of `pnet fit-group`, of the same prior's parcels: where a cohort has them takes the place of distances to the atlas, and
        Pearson edges get their shrunk and guided layers.
      personal: folder of `pnet personalize`: what it found for a recording is used, and not estimated again.
      personalize: see `PersonalizeConfig`.
      wave: scans that go through the compiled step together; None takes 1 for each CPU device and 8 for each accelerator.
      workers: Processes that read scans and write results while the devices compute; 0 does everything in this process. None uses one per
        core, or 0 for fewer than four scans.
      parallel: Devices of this process over which scans (`subject`) and the locations of each scan (`location`, a power of two) are split,
        and the addresses of the other processes (`--shard auto`).
      report: write an HTML page for each scan.
      probabilities: write the 4-D probability image.
      fingerprint: how `--resume` compares the inputs of a scan with those of its result: `"quick"` by size, modification time, beginning
        and end of each file, `"full"` by every byte.
      seed: of the pair sample and the bootstrap.
      cleaning: see `CleaningConfig`.
    """

    parcels: int | None = None
    prior: str | None = None
    checkpoint: str = "pnet-linear"
    edges: tuple[str, ...] = ("pearson",)
    kappa: float | None = None
    beta: float | None = None
    labels: str = "auto"
    min_coverage: float = 0.5
    dynamics: bool = False
    group: str | None = None
    personal: str | None = None
    personalize: PersonalizeConfig = dataclasses.field(default_factory=lambda: PersonalizeConfig())
    wave: int | None = None
    workers: int | None = None
    parallel: ParallelConfig = dataclasses.field(default_factory=lambda: ParallelConfig())
    report: bool = True
    probabilities: bool = True
    fingerprint: str = "quick"
    seed: int = 0
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)

    def __post_init__(self):
        _at_least(self, 1, "parcels", "wave")
        _at_least(self, 0, "beta", "min_coverage", "workers")
        if self.labels not in LABELS:
            expected = ", ".join(map(repr, LABELS))
            raise SettingsError(f"ConstructConfig.labels: expected one of {expected}, got {self.labels!r}{nearest(self.labels, LABELS)}")
        if self.fingerprint not in ("quick", "full"):
            raise SettingsError(f"ConstructConfig.fingerprint: expected 'quick' or 'full', got {self.fingerprint!r}")
        if self.kappa is not None and not self.kappa > 0:
            raise SettingsError(f"ConstructConfig.kappa: expected a number above 0, or None to choose it for each scan, got {self.kappa}")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A checkpoint from scans.

    Attributes:
      encoder: `"linear"`, in closed form from scans, or `"perceiver"`, trained on a store of records.
      name: the checkpoint calls itself so.
      dataset: Name of the data set of the scans, for `"linear"`; a store has names of its own.
      dimensions: D.
      references: R, even; half of them in each hemisphere.
      reference_space: `"mni"` spreads them over the MNI grey matter, `"scans"` over the locations of the first scan.
      parcels: sizes of the geometric priors to store, where `reference_space` is `"mni"`.
      learn_prior: sizes of priors to learn from the scans, which must share one Space.
      prior: dseg or dlabel file to store as prior; None stores the others only.
      seed: of everything random.
      cleaning: see `CleaningConfig`.
      start: checkpoint with the linear encoder, references and priors that a Perceiver starts from.
      perceiver: see `PerceiverConfig`; this and what follows is for `"perceiver"` only.
      input: see `InputConfig`.
      objectives: see `ObjectiveConfig`.
      optimiser: see `OptimiserConfig`.
      parallel: see `ParallelConfig`.
      validation: Share of the participants that are not trained on and give the validation curve, beside those that `input.held_out`
        never reads. None are taken of fewer than 10 participants.
      validate_every: Number of steps between two points of the validation curve.
      sharding: `"data"` keeps all weights on every device, `"fsdp"` splits them along the axis that scans are split along.
      workers: processes that read records; 0 reads in threads of this one.
      save_every: steps between saved states.
      keep: states that stay.
      log_every: steps between lines of the log.
    """

    encoder: str = "linear"
    name: str = "linear"
    dataset: str = ""
    dimensions: int = 64
    references: int = 400
    reference_space: str = "mni"
    parcels: tuple[int, ...] = (100, 200, 400)
    learn_prior: tuple[int, ...] = ()
    prior: str | None = None
    seed: int = 0
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    start: str = "pnet-linear"
    perceiver: PerceiverConfig = dataclasses.field(default_factory=lambda: PerceiverConfig())
    input: InputConfig = dataclasses.field(default_factory=lambda: InputConfig())
    objectives: ObjectiveConfig = dataclasses.field(default_factory=lambda: ObjectiveConfig())
    optimiser: OptimiserConfig = dataclasses.field(default_factory=lambda: OptimiserConfig())
    parallel: ParallelConfig = dataclasses.field(default_factory=lambda: ParallelConfig())
    validation: float = 0.1
    validate_every: int = 50
    sharding: str = "data"
    workers: int = 0
    save_every: int = 200
    keep: int = 2
    log_every: int = 10

    def __post_init__(self):
        _at_least(self, 1, "dimensions", "references", "save_every", "keep", "log_every", "validate_every")
        _at_least(self, 0, "workers", "validation")
        if not self.validation < 1:
            raise SettingsError(f"PretrainConfig.validation: expected a share of 0 or more and below 1, got {self.validation}")
        _check_dataset(self)
        for name, known in (("encoder", ("linear", "perceiver")), ("sharding", ("data", "fsdp"))):
            if getattr(self, name) not in known:
                raise SettingsError(f"PretrainConfig.{name}: expected one of {known}, got {getattr(self, name)!r}")
        if any(size < 2 or size % 2 for size in self.parcels):
            raise SettingsError(f"PretrainConfig.parcels: expected even numbers of at least 2, half in each hemisphere, got {self.parcels}")
        if any(size < 1 for size in self.learn_prior):
            raise SettingsError(f"PretrainConfig.learn_prior: expected 1 or more, got {self.learn_prior}")


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """How weights are trained: AdamW with a warm-up and a cosine.

    Attributes:
      steps: so many in all.
      rate: highest learning rate.
      warmup: share of the steps until it is reached.
      weight_decay: of matrices.
      clip: longest gradient.
      b2: decay of the squared gradients.
      eps: added to their root. Larger than is usual: where a gradient is rounding alone, its root must not make a step of it, or
        runs on other numbers of devices would part.
      average: decay of the moving average of the weights, which is what is exported.
      accumulate: a batch goes through in so many parts, for models that do not fit with all of it.
    """

    steps: int = 1000
    rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    b2: float = 0.95
    eps: float = 1e-6
    average: float = 0.999
    accumulate: int = 1

    def __post_init__(self):
        _at_least(self, 1, "steps", "accumulate")
        _at_least(self, 0, "rate", "warmup", "weight_decay", "clip", "eps")
        if not 0 <= self.average < 1:
            raise SettingsError(f"OptimiserConfig.average: expected 0 or more and below 1, got {self.average}")


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of the neural encoder. None of them is of V, T or TR, so that one model reads any scan.

    Attributes:
      width: of the hidden state of a location and of a latent.
      latents: M, what all locations of a scan write to and read from.
      depth: self-attention blocks among the latents.
      heads: of every attention; a divisor of the width.
      mlp: hidden width of the MLPs, in widths.
      dimensions: D, that of the linear encoder.
      references: R, that of the linear encoder.
      place: a location that shows its signal also says where it is. With it `nce` is solved by the place alone, which is the same in
        both segments, and parcels fall back to compact shapes (`docs/method.md`).
      dtype: of the factors of products, `"bfloat16"` or `"float32"`; sums, norms and softmax are float32.
      remat: compute blocks again in the backward pass instead of storing them.
      block: locations at a time where a whole scan is embedded.
    """

    width: int = 128
    latents: int = 128
    depth: int = 8
    heads: int = 4
    mlp: int = 4
    dimensions: int = 64
    references: int = 400
    place: bool = False
    dtype: str = "bfloat16"
    remat: bool = False
    block: int = 4096

    def __post_init__(self):
        _at_least(self, 1, "width", "latents", "heads", "mlp", "dimensions", "references", "block")
        _at_least(self, 0, "depth")
        if self.width % self.heads:
            raise SettingsError(f"PerceiverConfig.heads: expected a divisor of width = {self.width}, got {self.heads}")
        if self.dtype not in ("bfloat16", "float32"):
            raise SettingsError(f"PerceiverConfig.dtype: expected 'bfloat16' or 'float32', got {self.dtype!r}")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the five terms of pre-training, and what they are told. A term of weight 0 is not computed.

    Attributes:
      split: predict the other segment's fingerprint.
      nce: tell a location from others of its scan and hemisphere.
      mae: reconstruct masked balls of the brain.
      vic: variance and covariance of the embedding.
      dyn: forecast with a stable linear operator.
      anchors: locations of each scan that `nce` compares.
      negatives: others that each of them is told from.
      near_mm: half of the negatives lie this far away, from and to; nothing nearer is a negative.
      temperature: of `nce`.
      masked: share of the locations that `mae` hides.
      ball_mm: radius of the balls it hides.
      horizon: frames that `dyn` forecasts.
    """

    split: float = 1.0
    nce: float = 0.5
    mae: float = 0.5
    vic: float = 0.1
    dyn: float = 0.1
    anchors: int = 256
    negatives: int = 256
    near_mm: tuple[float, float] = (8.0, 30.0)
    temperature: float = 0.1
    masked: float = 0.75
    ball_mm: float = 24.0
    horizon: int = 4

    def __post_init__(self):
        _at_least(self, 0, "split", "nce", "mae", "vic", "dyn")
        _at_least(self, 1, "anchors", "negatives", "horizon")
        if not 0 < self.masked < 1:
            raise SettingsError(f"ObjectiveConfig.masked: expected a share between 0 and 1, got {self.masked}")
        if not (self.temperature > 0 and self.ball_mm > 0):
            raise SettingsError(f"ObjectiveConfig: expected temperature and ball_mm above 0, got {self.temperature} and {self.ball_mm}")


@dataclasses.dataclass(frozen=True)
class PersonalizeConfig:
    """Fine-tuning on one participant's own recording.

    Attributes:
      rounds: times that the parcels are made anew.
      steps: optimiser steps a round; only the first of a round goes through the locations.
      rate: of Adam, for encoder and prototypes.
      dynamics_rate: of Adam, for the dynamics; a step moves all K entries of a row at once, so that it must be small beside 1 / K.
      rank: of the change of the projection.
      held_out: share of the recording, its end, that says when to stop.
      dynamics_weight: of the likelihood of the parcels' signals; 0 fits the representation alone.
      anatomy_weight: of differences between neighbours, and by distance of coupling that the group does not have.
      prior_weight: of the adapter's own size.
      adapter_sd: expected size of an entry of the change of the projection.
      offset_sd: expected size of an entry of a prototype's offset.
      wave: recordings that are fine-tuned beside each other at most; fewer where they do not fit into memory.
      seed: of the directions that the change of the projection reads first.
    """

    rounds: int = 10
    steps: int = 10
    rate: float = 1e-2
    dynamics_rate: float = 1e-3
    rank: int = 4
    held_out: float = 0.2
    dynamics_weight: float = 0.5
    anatomy_weight: float = 0.1
    prior_weight: float = 1e-3
    adapter_sd: float = 0.1
    offset_sd: float = 0.1
    wave: int = 8
    seed: int = 0

    def __post_init__(self):
        _at_least(self, 1, "rounds", "steps", "rank", "wave")
        _at_least(self, 0, "dynamics_weight", "anatomy_weight", "prior_weight", "seed")
        for name in ("rate", "dynamics_rate", "adapter_sd", "offset_sd"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"PersonalizeConfig.{name}: expected a number above 0, got {getattr(self, name)}")
        if not 0.05 <= self.held_out <= 0.5:
            raise SettingsError(f"PersonalizeConfig.held_out: expected a share from 0.05 to 0.5, got {self.held_out}")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Records from scans.

    Attributes:
      dataset: name of the data set, where a store holds several: their subjects are then told apart although both have a `sub-01`.
      window: frames of a record at most; a scan is cut into equal windows of about as many, and a short one is one window.
      workers: processes that read scans at the same time.
      cleaning: see `CleaningConfig`; `min_frames` also says how short a scan made in memory may be.
    """

    dataset: str = ""
    window: int = 100
    workers: int = 1
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)

    def __post_init__(self):
        _at_least(self, 10, "window")
        _at_least(self, 1, "workers")
        _check_dataset(self)


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What pre-training reads: batches of pairs of segments, all of one shape.

    Attributes:
      batch: B, scans in a batch over all processes.
      locations: V, sampled of each scan; a scan that has fewer is padded.
      frames: T; a longer segment is cropped, a shorter one padded.
      min_seconds: shortest segment that is drawn.
      max_seconds: longest segment that is drawn; lengths are log-uniform, and shrink together where a scan has no room for both.
      gap_seconds: left out between two parts of one scan, a tenth of it at most.
      pairs: share of two sessions (or runs) among the examples of a subject that has several on one Space.
      balls: share of the locations that is drawn in compact balls, so that their neighbours are in the sample too.
      ball_mm: radius of a ball.
      ball_count: balls a sample.
      held_out: share of the subjects that training never reads.
      cache_mb: memory that a process keeps for reference signals it has computed.
      threads: examples that a process reads at the same time.
      seed: of everything random, with the number of the example.
    """

    batch: int = 16
    locations: int = 2048
    frames: int = 256
    min_seconds: float = 150.0
    max_seconds: float = 600.0
    gap_seconds: float = 30.0
    pairs: float = 0.5
    balls: float = 0.5
    ball_mm: float = 24.0
    ball_count: int = 8
    held_out: float = 0.1
    cache_mb: int = 512
    threads: int = 2
    seed: int = 0

    def __post_init__(self):
        _at_least(self, 1, "batch", "locations", "ball_count", "threads")
        _at_least(self, 8, "frames")
        _at_least(self, 0, "min_seconds", "gap_seconds", "pairs", "balls", "ball_mm", "held_out", "cache_mb", "seed")
        if not self.min_seconds <= self.max_seconds:
            raise SettingsError(
                f"InputConfig.max_seconds: expected {self.min_seconds:g} s (min_seconds) or more, got {self.max_seconds:g} s"
            )
        for name in ("pairs", "balls"):
            if getattr(self, name) > 1:
                raise SettingsError(f"InputConfig.{name}: expected a share 0…1, got {getattr(self, name)}")
        if not self.held_out < 1:
            raise SettingsError(f"InputConfig.held_out: expected a share of 0 or more and below 1, got {self.held_out}")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How work is spread over devices and processes.

    Attributes:
      subject: parts that subjects are split into; None takes the devices that `location` leaves.
      location: parts that the locations of a scan are split into; None takes the devices that `subject` leaves, 1 if both are None.
      coordinator: `"host:port"` of process 0; None asks SLURM, Open MPI, Kubernetes or the TPU pod.
      processes: how many take part; given together with `coordinator` and `process`, or not at all.
      process: number of this one, 0…processes − 1.
      heartbeat: seconds of silence after which a process counts as dead and the others stop.
    """

    subject: int | None = None
    location: int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    heartbeat: int = 100

    def __post_init__(self):
        _at_least(self, 1, "subject", "location", "processes", "heartbeat")
        _at_least(self, 0, "process")
        explicit = {name: getattr(self, name) for name in ("coordinator", "processes", "process")}
        missing = [name for name, value in explicit.items() if value is None]
        if 0 < len(missing) < len(explicit):
            raise SettingsError(
                f"ParallelConfig: expected coordinator, processes and process together or none of them, got no {' and no '.join(missing)}"
            )
        if self.process is not None and self.processes is not None and self.process >= self.processes:
            raise SettingsError(f"ParallelConfig.process: expected a number below {self.processes} (processes), got {self.process}")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdigit():
            raise SettingsError(f"ParallelConfig.coordinator: expected host:port, got {self.coordinator!r}")


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:  # NaN too
            raise SettingsError(f"{type(config).__name__}.{name}: expected {least} or more, got {value}")


def _check_dataset(config: PretrainConfig | PrepareConfig) -> None:
    if config.dataset and not config.dataset.replace("-", "").replace("_", "").isalnum():
        raise SettingsError(f"{type(config).__name__}.dataset: expected letters, digits, - and _, got {config.dataset!r}")


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word most like the given one, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
