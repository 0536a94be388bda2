"""Settings of all stages, as frozen dataclasses. The command line fills them from its options and from `configs/*.toml`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Literal, get_args, get_origin, get_type_hints

from pnet_jax.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Cleaning of the signals (`nilearn.signal.clean`), and the shortest scan that is accepted.

    Attributes:
      strategy: Strategies of `nilearn.interfaces.fmriprep.load_confounds` for fMRIPrep inputs, e.g. `motion high_pass wm_csf`; empty
        for none.
      motion: Motion model of `load_confounds`.
      wm_csf: White-matter and CSF model of `load_confounds`.
      global_signal: Global-signal model of `load_confounds`; used if `strategy` contains `global_signal`.
      fd_threshold: Framewise displacement in mm above which a frame is scrubbed; used if `strategy` contains `scrub`.
      std_dvars_threshold: Standardised DVARS above which a frame is scrubbed; used if `strategy` contains `scrub`.
      scrub: Shortest run of frames that is kept between scrubbed frames.
      low_pass: Upper cut-off frequency in Hz; 0 for no low-pass filter.
      high_pass: Lower cut-off frequency in Hz; 0 for no high-pass filter.
      detrend: Remove the linear trend.
      wide: Also keep the signals before the low-pass filter, the second view of guided edges; needs half as much memory again.
      halves: Also clean each half of the scan separately, which the selection and assessment of parcels need; doubles the memory.
      min_frames: Smallest number of frames after scrubbing; a shorter scan is an error.
      min_seconds: Shortest duration in seconds after scrubbing; a shorter scan is an error.
      warn_seconds: Duration in seconds after scrubbing below which a warning is given.
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
    """Simulated cohort with known parcels, networks and dynamics (docs/method.md, Simulator).

    Attributes:
      subjects: Number of participants.
      sessions: Number of sessions of each participant.
      tier: Difficulty; `real` matches the noise of real scans.
      resolution: Voxel size in mm: 4, 3 or 2.
      parcels: Number of true parcels; even.
      minutes: Duration of a session in minutes.
      tr: Repetition time in seconds; that of the site by default (2.0 s at the first site).
      sites: Number of sites, 1 to 4.
      patients: Fraction of participants with the simulated disease.
      severity: Severity of the disease, 0 to 1.
      seed: Random seed.
    """

    subjects: int = 4
    sessions: int = 2
    tier: Literal["easy", "medium", "hard", "real"] = "medium"
    resolution: int = 4
    parcels: int = 100
    minutes: float = 10.0
    tr: float | None = None
    sites: int = 1
    patients: float = 0.0
    severity: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ConstructConfig:
    """Construction of networks from scans.

    Attributes:
      parcels: Number of parcels of the built-in atlas: 100, 200 (default) or 400.
      atlas: Input atlas: dseg (NIfTI), dlabel (CIFTI) or a pair of .label.gii files; the built-in atlas by default.
      checkpoint: Pre-trained model: name of a shipped model, or checkpoint folder.
      edges: Edge measures, e.g. `pearson partial`.
      kappa: Concentration κ of the parcels; estimated for each scan by default.
      beta: Weight β of the spatial smoothness; estimated for each scan by default.
      labels: Parcels that are returned: `personalised`, those of the `atlas`, or `auto` for personalised parcels in scans that
        support them.
      min_coverage: Coverage below which a parcel is named in the report.
      dynamics: Fine-tune encoder and parcels on each scan, together with the dynamics of the parcels; needs a `group` with dynamics.
      group: Group model: folder written by `pnet fit-group` for the same atlas; adds shrunk and guided Pearson edges.
      personalized: Individual parameters: folder written by `pnet personalize`; scans without parameters are fine-tuned.
      personalize: Settings of the fine-tuning.
      wave: Number of scans that are computed together; 1 per CPU device or 8 per accelerator by default.
      workers: Number of processes that read scans and write results; by default one per core, and none for fewer than four scans.
      parallel: Distribution over devices and processes.
      report: Write an HTML page for each scan.
      probabilities: Write the 4-D image of parcel probabilities.
      fingerprint: Comparison of inputs by `--resume`: `quick` (size, modification time, first and last bytes) or `full` (all bytes).
      seed: Random seed of the bootstrap and of the location pairs of the DCBC.
      cleaning: Settings of the cleaning.
    """

    parcels: int | None = None
    atlas: str | None = None
    checkpoint: str = "pnet-linear"
    edges: tuple[str, ...] = ("pearson",)
    kappa: float | None = None
    beta: float | None = None
    labels: Literal["auto", "personalised", "atlas"] = "auto"
    min_coverage: float = 0.5
    dynamics: bool = False
    group: str | None = None
    personalized: str | None = None
    personalize: PersonalizeConfig = dataclasses.field(default_factory=lambda: PersonalizeConfig())
    wave: int | None = None
    workers: int | None = None
    parallel: ParallelConfig = dataclasses.field(default_factory=lambda: ParallelConfig())
    report: bool = True
    probabilities: bool = True
    fingerprint: Literal["quick", "full"] = "quick"
    seed: int = 0
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)

    def __post_init__(self):
        _at_least(self, 1, "parcels", "wave")
        _at_least(self, 0, "beta", "min_coverage", "workers")
        _check_choices(self)
        if self.kappa is not None and not self.kappa > 0:
            raise SettingsError(
                f"ConstructConfig.kappa: expected a number above 0, or no value to estimate it for each scan, got {self.kappa}"
            )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pre-training of a model on many scans.

    Attributes:
      encoder: Encoder: `linear`, fitted in closed form to scans, or `perceiver`, trained on a store of records.
      name: Name of the checkpoint.
      dataset: Name of the dataset, for the linear encoder; records in a store have their own.
      dimensions: Number of dimensions D of the embedding.
      references: Number of reference regions R; even, half of them in each hemisphere.
      reference_space: Reference regions: in the `mni` grey matter, or among the locations of the first scan (`scans`).
      parcels: Numbers of parcels of the geometric atlases that are stored with the model, if `reference_space` is `mni`.
      learn_atlas: Numbers of parcels of the atlases that are learned from the scans, which must share one space.
      atlas: dseg or dlabel file that is stored as an atlas with the model.
      seed: Random seed.
      cleaning: Settings of the cleaning.
      start: Checkpoint with the linear encoder, references and atlases that the Perceiver starts from.
      perceiver: Architecture of the Perceiver; this and all following settings are for the Perceiver only.
      input: Settings of the batches.
      objectives: Settings of the objectives.
      optimiser: Settings of the optimiser.
      parallel: Distribution over devices and processes.
      validation: Fraction of the participants in the validation set; none if there are fewer than 10 participants.
      validate_every: Number of steps between evaluations of the validation set.
      sharding: Sharding of the parameters: replicated on every device (`data`), or sharded over the mesh axis `subject` (`fsdp`).
      workers: Number of processes that read records; 0 for threads of this process.
      save_every: Number of steps between training checkpoints.
      keep: Number of most recent training checkpoints that are kept.
      log_every: Number of steps between log lines.
    """

    encoder: Literal["linear", "perceiver"] = "linear"
    name: str = "linear"
    dataset: str = ""
    dimensions: int = 64
    references: int = 400
    reference_space: Literal["mni", "scans"] = "mni"
    parcels: tuple[int, ...] = (100, 200, 400)
    learn_atlas: tuple[int, ...] = ()
    atlas: str | None = None
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
    sharding: Literal["data", "fsdp"] = "data"
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
        _check_choices(self)
        if any(size < 2 or size % 2 for size in self.parcels):
            raise SettingsError(f"PretrainConfig.parcels: expected even numbers of at least 2, half in each hemisphere, got {self.parcels}")
        if any(size < 1 for size in self.learn_atlas):
            raise SettingsError(f"PretrainConfig.learn_atlas: expected 1 or more, got {self.learn_atlas}")


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
      steps: Number of steps.
      rate: Peak learning rate (linear warm-up, then cosine decay to 0).
      warmup: Fraction of the steps with linear warm-up.
      weight_decay: Weight decay, applied to matrices only.
      clip: Global-norm threshold for gradient clipping.
      b2: Decay rate of the second moment.
      eps: Epsilon of AdamW. Larger than usual, so that gradients at rounding level do not cause updates, and runs on different numbers of
        devices agree.
      average: Decay rate of the exponential moving average of the weights, which is the exported model.
      accumulate: Number of gradient-accumulation micro-batches per step.
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
    """Architecture of the neural encoder, independent of the number of locations, the number of frames and the TR.

    Attributes:
      width: Width of the hidden state of a location and of a latent.
      latents: Number of latents M, which all locations of a scan write to and read from.
      depth: Number of self-attention blocks among the latents.
      heads: Number of attention heads; a divisor of `width`.
      mlp: Hidden width of the MLPs, in multiples of `width`.
      dimensions: Number of dimensions D of the embedding; that of the linear encoder.
      references: Number of reference regions R; that of the linear encoder.
      place: Add positional encodings to unmasked locations. Not recommended: `nce` can then be solved from position alone, and parcels
        become compact (docs/method.md).
      dtype: Compute dtype of matrix products; accumulation, normalisation and softmax use float32.
      remat: Rematerialise blocks in the backward pass (`jax.checkpoint`) to save memory.
      block: Number of locations that are embedded at a time.
    """

    width: int = 128
    latents: int = 128
    depth: int = 8
    heads: int = 4
    mlp: int = 4
    dimensions: int = 64
    references: int = 400
    place: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: bool = False
    block: int = 4096

    def __post_init__(self):
        _at_least(self, 1, "width", "latents", "heads", "mlp", "dimensions", "references", "block")
        _at_least(self, 0, "depth")
        if self.width % self.heads:
            raise SettingsError(f"PerceiverConfig.heads: expected a divisor of width = {self.width}, got {self.heads}")
        _check_choices(self)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and settings of the five pre-training objectives; an objective of weight 0 is not computed.

    Attributes:
      split: Weight of predicting the fingerprint of the other segment.
      nce: Weight of distinguishing a location from others of the same scan and hemisphere.
      mae: Weight of reconstructing masked balls of the brain.
      vic: Weight of the variance and covariance regularisation of the embedding.
      dyn: Weight of forecasting with a stable linear operator.
      anchors: Number of locations of each scan that `nce` compares.
      negatives: Number of negatives of each anchor.
      near_mm: Range of distances in mm of half of the negatives; no negative is closer.
      temperature: Temperature of `nce`.
      masked: Fraction of the locations that `mae` masks.
      ball_mm: Radius in mm of the masked balls.
      horizon: Number of frames that `dyn` forecasts.
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
    """Fine-tuning on the scan of one participant.

    Attributes:
      rounds: Number of outer iterations; the parcellation is re-estimated at the start of each.
      steps: Number of optimiser steps per outer iteration.
      rate: Learning rate of Adam for encoder and prototypes.
      dynamics_rate: Learning rate of Adam for the dynamics; must be small compared with 1 / K, because a step changes all K entries
        of a row.
      rank: Rank of the low-rank adapter (LoRA) of the projection of the encoder.
      held_out: Fraction at the end of the scan that is held out for early stopping.
      dynamics_weight: Weight of the likelihood of the parcel signals; 0 fits the representation only.
      anatomy_weight: Weight of the penalties on differences between neighbours and on distant coupling that is absent in the group.
      prior_weight: Weight of the penalty on the size of the adapter.
      adapter_sd: Prior standard deviation of the entries of the adapter.
      offset_sd: Prior standard deviation of the offsets of the prototypes.
      wave: Largest number of scans that are fine-tuned together; fewer if they do not fit into memory.
      seed: Random seed of the initialisation of the adapter.
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
    """Records of cleaned scans for pre-training.

    Attributes:
      dataset: Name of the dataset, for a store with several datasets whose subject labels coincide.
      window: Largest number of frames per record; a scan is split into windows of equal length.
      workers: Number of processes that read scans.
      cleaning: Settings of the cleaning; `min_frames` also applies to scans made in memory.
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
    """Batches of pairs of segments for pre-training, all of one shape.

    Attributes:
      batch: Global batch size B in scans.
      locations: Number of locations V that are sampled from each scan; a scan with fewer is padded.
      frames: Number of frames T; longer segments are cropped, shorter ones padded.
      min_seconds: Shortest segment in seconds.
      max_seconds: Longest segment in seconds; durations are log-uniform, and shorter if a scan cannot hold both segments.
      gap_seconds: Gap in seconds between two segments of one scan, at most a tenth of its duration.
      pairs: Fraction of pairs from two sessions (or runs) for participants with several in one space.
      balls: Fraction of the locations that are sampled in compact balls, which contain their neighbours.
      ball_mm: Radius of a ball in mm.
      ball_count: Number of balls per sample.
      held_out: Fraction of the participants that are never used for training.
      cache_mb: Memory in MB for cached reference signals, per process.
      threads: Number of examples that a process reads in parallel.
      seed: Random seed, combined with the number of the example.
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
    """Distribution of work over devices and processes.

    Attributes:
      subject: Size of the mesh axis `subject` (data parallelism over scans); by default all devices not used by `location`.
      location: Size of the mesh axis `location`, over which the locations of each scan are sharded; 1 by default, unless `subject` is
        given.
      coordinator: Address `host:port` of process 0; detected from SLURM, Open MPI, Kubernetes or the TPU pod by default.
      processes: Total number of processes; given together with `coordinator` and `process`, or not at all.
      process: Index of this process, 0 to processes − 1.
      heartbeat: Seconds without contact after which a process is considered lost and the others stop.
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


def _check_choices(config: object) -> None:
    """Refuse values that the type of their field (`Literal`) does not list."""
    for name, kind in get_type_hints(type(config)).items():
        known, value = get_args(kind) if get_origin(kind) is Literal else (), getattr(config, name)
        if known and value not in known:
            expected = ", ".join(map(repr, known))
            said = f"{type(config).__name__}.{name}: expected one of {expected}, got {value!r}"
            raise SettingsError(said + nearest(str(value), known))


def _check_dataset(config: PretrainConfig | PrepareConfig) -> None:
    if config.dataset and not config.dataset.replace("-", "").replace("_", "").isalnum():
        raise SettingsError(f"{type(config).__name__}.dataset: expected letters, digits, - and _, got {config.dataset!r}")


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word most like the given one, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
