"""Pre-training of the neural encoder: from a store of records to a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import pnet_jax
from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.bench.roofline import matmul_rate
from pnet_jax.checkpoint import Saves, load_model
from pnet_jax.config import PretrainConfig
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Model
from pnet_jax.encoder.perceiver import PerceiverEncoder
from pnet_jax.encoder.tokens import Segments
from pnet_jax.outputs.lock import only_here
from pnet_jax.pretraining.log import Log
from pnet_jax.pretraining.spread import BATCH, by_field, check_divides, spread
from pnet_jax.pretraining.step import TrainState
from pnet_jax.records import LEAST_VALIDATED, Store, batches, open_store, split_subjects, split_validation

MOST_BATCHES = 4  # largest number of validation batches, which stay in memory
_DECIDING = ("start", "seed", "perceiver", "input", "objectives", "optimiser", "validation")  # configuration fields that affect results
PEAK_SIZES = (1024, 2048)  # sizes of the matrix products that measure peak throughput


class Finished(NamedTuple):
    """Outcome of a training run.

    Attributes:
      model: Model to export, or None if the run was stopped before its last step.
      step: Last completed step.
      leads: Whether this process writes the results that all processes share.
    """

    model: Model | None
    step: int
    leads: bool


def train(store_folder: str | pathlib.Path, out: str | pathlib.Path, config: PretrainConfig, *, progress: bool = True) -> Finished:
    """Train a neural encoder on a store of records, or resume the run in an existing folder.

    In multi-process runs, every process calls this function after `parallel.start`.

    Args:
      store_folder: Store written by `pnet prepare`.
      out: Folder of the run, for training states, metrics, and the model that the caller saves.
      config: Settings with `encoder="perceiver"`; see `PretrainConfig`.
      progress: Whether to show a progress bar.

    Raises:
      ValueError: If the store cannot be used, the configuration differs from that of the run, or a state is damaged.
      FloatingPointError: If the loss is not finite. The scans of the batch are named, and earlier states are kept.
      ProcessLostError: If another process was lost.
      OSError: If the disk is full.
    """
    process = parallel.Process(jax.process_index(), jax.process_count())
    mesh = parallel.make_mesh(config.parallel)
    check_divides(config, mesh, process.total)
    out = pathlib.Path(out)

    # Records, and the linear encoder that the neural one starts from.
    store = open_store(store_folder, verify=True)
    some, held_out = split_subjects(store, config.input.held_out, config.input.seed)
    subjects, validation = split_validation(some, config.validation, config.input.seed)
    base = load_model(config.start)
    linear = base.encoder if isinstance(base.encoder, LinearEncoder) else base.encoder.linear

    # Training state: first shapes, then shardings, then values in place.
    initial, layout, step, validate = spread(base.encoder, config, mesh)
    state = jax.jit(initial, out_shardings=layout)()

    with contextlib.ExitStack() as stack:
        if process.number == 0:
            stack.enter_context(only_here(out, "pnet pretrain"))
        saves = Saves(out / "states", keep=config.keep, config=_told(config, store))
        # If a process is lost, the state being written can never be completed.
        stack.push(lambda _, error, __: None if isinstance(error, parallel.ProcessLostError) else saves.close())
        state = saves.restore(state) or state
        first = int(state.step)
        if first and process.number == 0:
            print(f"resumed from step {first}", flush=True)
        if process.number == 0 and config.validation:
            print(_validated_on(validation, some), flush=True)
        shared: dict[str, Any] = {"process": process.number, "processes": process.total}
        read = batches(store, config.input, linear.references, step=first, workers=config.workers, subjects=subjects, **shared)
        source = stack.enter_context(contextlib.closing(read))
        unseen = _validation_batches(store, config, linear.references, validation, shared)
        log = Log(out, steps=config.optimiser.steps, first=first, writes=process.number == 0, progress=progress)
        stack.enter_context(contextlib.closing(log))
        asked = stack.enter_context(_asked_to_stop())
        run = _Run(step, mesh, store, saves, log, asked, config, validate, unseen)
        state = run.go(state, source)
    last = int(state.step)
    if last < config.optimiser.steps:
        return Finished(None, last, process.number == 0)
    encoder = PerceiverEncoder(linear, jax.tree.map(parallel.to_host, state.average), config.perceiver)
    card = _card(config, store, base, subjects, validation, held_out, log.last)
    return Finished(Model(config.name, encoder, base.atlases, card), last, process.number == 0)


def _validated_on(validation: Sequence[str], some: Sequence[str]) -> str:
    if validation:
        return f"validation: {len(validation)} of {len(some)} participants, not trained on"
    return f"no validation curve: at least {LEAST_VALIDATED} participants are needed besides those held out, found {len(some)}"


def _validation_batches(
    store: Store, config: PretrainConfig, references: np.ndarray, validation: Sequence[str], shared: dict[str, Any]
) -> list[Segments]:
    """Return this process's rows of the validation batches: at most 4, identical at each evaluation, each participant once if possible."""
    if not validation:
        return []
    count = min(-(-len(validation) // config.input.batch), MOST_BATCHES)
    with batches(store, config.input, references, subjects=validation, **shared) as read:
        return [next(read) for _ in range(count)]


class _Run:
    """The training loop around the compiled step.

    The metrics of a step are read while the next step runs, so that the device never waits for the host.
    """

    def __init__(
        self,
        step: Any,
        mesh: Mesh,
        store: Store,
        saves: Saves,
        log: Log,
        asked: Callable[[], bool],
        config: PretrainConfig,
        validate: Any,
        unseen: Sequence[Segments],
    ):
        self._step, self._mesh, self._store, self._saves, self._log = step, mesh, store, saves, log
        self._asked, self._config, self._validate, self._unseen = asked, config, validate, unseen
        self._compiled: Any = None
        self._flop = self._peak = 0.0

    def go(self, state: TrainState, source: Iterator[Segments]) -> TrainState:
        """Run the remaining steps and save; stop early on request. Saving of the last state may still be in progress on return."""
        config, first = self._config, int(state.step)
        taken = _Taken(first, time.perf_counter(), logged=first)
        for number in range(first + 1, config.optimiser.steps + 1):
            begun = time.perf_counter()
            local = next(source)
            waited = time.perf_counter() - begun
            with _others_named(number):
                batch = self._place(local)
                if self._compiled is None:
                    self._compile(state, batch)
                    taken = taken._replace(at=time.perf_counter())
                state, numbers = self._compiled(state, batch)
                taken = self._look(taken)
                taken = taken._replace(step=number, numbers=numbers, records=local.record, waited=taken.waited + waited)
                if self._unseen and (number % config.validate_every == 0 or number == config.optimiser.steps):
                    taken = self._validated(taken, state)
                stopping = self._asked()
                if stopping or number % config.save_every == 0 or number == config.optimiser.steps:
                    taken = self._look(taken)
                    self._saves.save(number, state)
            if stopping:
                break
        return state

    def _validated(self, taken: _Taken, state: TrainState) -> _Taken:
        """Add the objectives of the averaged weights, which are exported, on participants that are not trained on."""
        jax.block_until_ready(taken.numbers)
        begun = time.perf_counter()
        found = [jax.device_get(self._validate(state.average, self._place(local), np.int32(i))) for i, local in enumerate(self._unseen)]
        means = {f"validation/{name}": float(np.mean([one[name] for one in found])) for name in found[0]}
        return taken._replace(validation=means, at=taken.at + time.perf_counter() - begun)  # not counted as training time

    def _place(self, local: Segments) -> Segments:
        return by_field(lambda name: parallel.global_array(np.asarray(getattr(local, name)), self._mesh, *BATCH[name]))

    def _compile(self, state: TrainState, batch: Segments) -> None:
        """Compile the step; measure its work per device and the device's peak throughput, whose quotient is the model FLOP utilisation."""
        self._compiled = self._step.lower(state, batch).compile()
        self._flop = hlo.read(self._compiled).matmul
        self._peak = matmul_rate(self._config.perceiver.dtype, PEAK_SIZES, repeats=3)

    def _look(self, taken: _Taken) -> _Taken:
        """Check the metrics of the last step, raise if they are not finite, and log at intervals."""
        if taken.numbers is None:
            return taken
        numbers = {name: float(value) for name, value in jax.device_get(taken.numbers).items()}
        if not np.isfinite(numbers["loss"] + numbers["gradient_norm"]):
            found = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            scans = ", ".join(sorted({self._store.records[int(record)].key for record in taken.records}))
            raise FloatingPointError(
                f"step {taken.step}: expected finite metrics, found {found} in a batch with scans {scans}; "
                "the last saved state precedes this step"
            )
        if taken.step % self._config.log_every and taken.step != self._config.optimiser.steps and not taken.validation:
            return taken._replace(numbers=None)
        now = time.perf_counter()
        steps, seconds = taken.step - taken.logged, now - taken.at
        rate = steps * self._config.input.batch / seconds
        speed = {
            "scans_per_second": rate,
            "tokens_per_second": rate * 2 * self._config.input.locations,
            "model_flop_utilisation": self._flop * steps / seconds / self._peak,
            "data_wait": taken.waited / seconds,
        }
        said = f"loss {numbers['loss']:.3f}, {rate:.1f} scans/s, {speed['tokens_per_second']:.0f} tokens/s, "
        said += f"validation {taken.validation['validation/loss']:.3f}, " if taken.validation else ""
        said += f"MFU {speed['model_flop_utilisation']:.0%}, data wait {speed['data_wait']:.0%}"
        self._log(taken.step, numbers | (taken.validation or {}) | speed, said)
        return _Taken(taken.step, now, logged=taken.step)


class _Taken(NamedTuple):
    """The last completed step, and the time since the last line of the log."""

    step: int
    at: float
    logged: int
    waited: float = 0.0
    numbers: Any = None
    records: Any = None
    validation: dict[str, float] | None = None


def _told(config: PretrainConfig, store: Store) -> dict[str, Any]:
    """Return everything that must be unchanged for a run to resume: all settings except where and how fast it runs."""
    whole = dataclasses.asdict(config)
    return {name: whole[name] for name in ("encoder", *_DECIDING)} | {"store": store.digest}


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Detect SIGTERM or Ctrl-C in this or any other process, so that all processes stop after the same step."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}

    def asked() -> bool:
        return parallel.any_process(bool(came))

    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _others_named(step: int) -> Iterator[None]:
    """Report a runtime error in a multi-process run as a lost process, its most common cause."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise parallel.ProcessLostError(
            f"step {step}: another process was lost or cannot be reached ({str(error).splitlines()[0][:200]})"
        ) from error


def _participants(store: Store, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """List data set, store and subject labels of participants, one row per data set."""
    labels: dict[str, set[str]] = {}
    for record in store.records:
        if record.subject in subjects:
            labels.setdefault(record.dataset, set()).add(record.subject.removeprefix(f"{record.dataset}/"))
    return [{"dataset": name, "store": store.digest, "subjects": sorted(labels[name])} for name in sorted(labels)]


def _card(
    config: PretrainConfig,
    store: Store,
    base: Model,
    subjects: Sequence[str],
    validation: Sequence[str],
    held_out: Sequence[str],
    last: dict[str, float],
) -> dict[str, Any]:
    whole = dataclasses.asdict(config)
    return {
        "what": "neural encoder: the linear one and a correction by a Perceiver",
        "made_with": f"pnet_jax {pnet_jax.__version__}",
        "made_on": datetime.date.today().isoformat(),
        "config": {name: whole[name] for name in (*_DECIDING, "sharding")},
        "store": store.digest,
        "cleaning": {name: store.records[0].settings.get(name) for name in ("strategy", "detrend", "high_pass", "low_pass")},
        "scans": sum(record.subject in subjects for record in store.records),
        "subjects": len(subjects),
        "participants": [*base.card.get("participants", ()), *_participants(store, subjects)],
        "validation": list(validation),
        "held_out": list(held_out),
        "spaces": len({record.space for record in store.records}),
        "last_numbers": {name: round(value, 4) for name, value in last.items() if "second" not in name},
    }
