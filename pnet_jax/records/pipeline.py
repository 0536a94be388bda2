"""From a store to batches of `Segments`: examples are functions of (seed, number) alone, which grain distributes to readers."""

from __future__ import annotations

import collections
import hashlib
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from pnet_jax.config import InputConfig
from pnet_jax.encoder.tokens import Segments, log_tsnr, nearest_reference
from pnet_jax.errors import SettingsError
from pnet_jax.execution import check_workers
from pnet_jax.records.sampling import Stretch, draw_length, draw_locations, draw_parts, draw_stretch, stream
from pnet_jax.records.store import Store, read_locations, read_space, read_windows

Part = Literal["training", "held out", "all"]
LEAST_VALIDATED = 10  # fewest training subjects from which a validation set is split off
_EXAMPLES = 2**40  # more than any run draws
_FLAT = 1e-3  # standard deviation of a z-scored signal in a segment below which it is rounding error
_TRACKER = "ignore:resource_tracker:UserWarning"
_SPACES_KEPT, _LOCATIONS_KEPT = 16, 256
_ORDER, _EXAMPLE = range(2)  # random streams


class Batches:
    """Iterator over batches; close it, or use it in a `with` statement."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Segments:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and processes that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def batches(
    store: Store,
    config: InputConfig,
    references: Float[np.ndarray, "R 3"],
    *,
    step: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    part: Part = "training",
    subjects: Sequence[str] | None = None,
) -> Batches:
    """Iterate endlessly over batches, starting at batch `step`, and return this process's rows of each.

    Batch s consists of examples s·B … s·B + B − 1, of which process p of n reads rows p, p + n, …. An example depends only on
    its number, `config.seed`, the store and the references. Batches are therefore identical for any number of processes and workers, and
    for any first step.

    Subjects are sampled evenly: examples pass through all subjects in random order, then through all again in a new order. Scans of a
    subject are also sampled evenly. Subjects with many scans are not weighted more, since participants differ more than sessions do.

    Args:
      store: Store from `open_store`.
      config: Settings; see `InputConfig`.
      references: Reference points in MNI mm, `[R, 3]`.
      step: Number of the first batch.
      process: Number of this process.
      processes: Number of processes that share a batch; must divide its size.
      workers: Number of reader processes, each with `config.threads` threads and its own cache; 0 reads in threads of this process. Scripts
          that use workers need the usual `if __name__ == "__main__":`.
      part: `"training"` reads no subject that `split_subjects` holds out; `"held out"` reads only those.
      subjects: Subjects to read, overriding `part`.

    Raises:
      SettingsError: If the batch is not divisible by the number of processes, or the part contains no subjects.

    Example:
      >>> from pnet_jax.records import open_store
      >>> store = open_store("store")  # doctest: +SKIP
      >>> with batches(store, InputConfig(batch=8), references) as data:  # doctest: +SKIP
      ...     next(data).y.shape
      (8, 2, 2048, 256)
    """
    if not 0 <= process < processes or config.batch % processes:
        raise SettingsError(
            f"expected a number of processes that divides the batch size {config.batch}, got process {process} of {processes}"
        )
    check_workers(workers, "PretrainConfig.workers")
    if step < 0 or workers < 0:
        raise SettingsError(f"expected step and workers of 0 or more, got step {step} and {workers} workers")
    if subjects is None:
        subjects = store.subjects if part == "all" else split_subjects(store, config.held_out, config.seed)[part == "held out"]
    examples = Examples(store, config, references, subjects)
    import grain

    # Numbers are assigned before sharding, so that an example does not depend on its reader.
    data = grain.MapDataset.range(_EXAMPLES).map(examples)
    data = data[step * config.batch + process :: processes].batch(config.batch // processes)
    reading = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
    ahead = data.to_iter_dataset(reading)
    if workers:
        _let_workers_start()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return Batches(iter(ahead))


def split_subjects(store: Store, held_out: float, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split subjects into training and held-out subjects, both sorted, by their labels and the seed alone.

    If one side would be empty, as can happen in small stores, the subject nearest to the threshold changes sides.

    Raises:
      SettingsError: If the store has only one subject and a share is to be held out.
    """
    subjects = store.subjects
    if held_out <= 0:
        return subjects, ()
    if len(subjects) < 2:
        raise SettingsError(
            f"store {store.folder} has one subject ({subjects[0]}) in {len(store)} scans: at least two are needed to hold out a share of "
            f"{held_out:g}; held_out = 0 trains on all subjects and leaves none for testing"
        )
    return _divide(subjects, held_out, f"{seed}")


def split_validation(subjects: Sequence[str], share: float, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the training subjects once more, into those to train on and those of the validation curve, both sorted.

    As in `split_subjects`, the split depends on labels and seed alone, and neither side is empty.

    Args:
      subjects: Training subjects from `split_subjects`.
      share: Share of the subjects to validate on; 0 for none.
      seed: Seed of the split.

    Returns:
      Training and validation subjects. With fewer than 10 subjects, all are trained on, because a curve over one or two is uninformative.
    """
    if share <= 0 or len(subjects) < LEAST_VALIDATED:
        return tuple(sorted(subjects)), ()
    return _divide(subjects, share, f"{seed}/validation")


def _divide(subjects: Sequence[str], share: float, salt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    place = {subject: _share(f"{salt}/{subject}") for subject in subjects}
    ranked = sorted(subjects, key=place.__getitem__)
    count = min(max(sum(place[subject] < share for subject in subjects), 1), len(subjects) - 1)
    return tuple(sorted(ranked[count:])), tuple(sorted(ranked[:count]))


def _share(text: str) -> float:
    """Map a text to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


class _Geometry(NamedTuple):
    """Geometry of a Space for the pipeline: coordinates, reference region of each location, and sums over the regions."""

    xyz: Float[np.ndarray, "V 3"]
    hemisphere: Int[np.ndarray, " V"]
    tree: cKDTree
    region: Int[np.ndarray, " V"]
    sums: scipy.sparse.csr_matrix  # [R, V]


class _Source(NamedTuple):
    """Data of a scan besides its signals: usable locations, log tSNR, factors that turn regional sums into means, and retained frames."""

    valid: Bool[np.ndarray, " V"]
    log_tsnr: Float[np.ndarray, " V"]
    per_region: Float[np.ndarray, "R 1"]
    frames: Int[np.ndarray, " T"]


class _Plan(NamedTuple):
    """Content of an example: a scan and two stretches of it, and the generator that draws the locations."""

    scans: tuple[int, int]
    stretches: tuple[Stretch, Stretch]
    rng: np.random.Generator


class Examples:
    """The examples of a store, by number. Callable, picklable and thread-safe.

    Args:
      store: Store from `open_store`.
      config: Settings; see `InputConfig`.
      references: Reference points in MNI mm, `[R, 3]`.
      subjects: Subjects whose scans are read.

    Raises:
      SettingsError: If there are no subjects, or the references are not points.
    """

    def __init__(self, store: Store, config: InputConfig, references: Float[np.ndarray, "R 3"], subjects: Sequence[str]):
        self.store, self.config = store, config
        self.references = np.asarray(references, np.float32)
        if self.references.ndim != 2 or self.references.shape[1] != 3 or not len(self.references):
            raise SettingsError(f"references must be points in mm, [R, 3], got shape {self.references.shape}")
        if not subjects:
            raise SettingsError(
                f"store {store.folder}: expected at least one of its {len(store.subjects)} subjects in this part, found none"
            )
        numbers: dict[str, list[int]] = {subject: [] for subject in subjects}
        for number, record in enumerate(store.records):
            if record.subject in numbers:
                numbers[record.subject].append(number)
        self.numbers = tuple(tuple(numbers[subject]) for subject in sorted(numbers))
        self._make_caches()

    def _make_caches(self) -> None:
        self._geometry = _Cache(_SPACES_KEPT)
        self._sources = _Cache(_LOCATIONS_KEPT)
        self._orders = _Cache(4)
        self._signals = _Cache(self.config.cache_mb * 2**20, size=lambda array: array.nbytes)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not isinstance(value, _Cache)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def __call__(self, number: int) -> Segments:
        """Return example `number`, without the leading axis B."""
        scans, stretches, rng = self._plan(int(number))
        geometry = self._geometry_of(self.store.records[scans[0]].space)
        a, b = (self._source_of(scan) for scan in scans)
        chosen = draw_locations(rng, geometry.tree, geometry.xyz, a.valid & b.valid, self.config)
        signals, means, varies = zip(
            *(self._read(scan, stretch, chosen) for scan, stretch in zip(scans, stretches, strict=True)), strict=True
        )
        counted = varies[0] & varies[1]
        locations, frames = self.config.locations, self.config.frames
        positions = [source.frames[start:stop] - source.frames[start] for source, (start, stop) in zip((a, b), stretches, strict=True)]

        def over_locations(values: np.ndarray, dtype: Any) -> np.ndarray:
            return _padded(values, (locations, *values.shape[1:]), dtype)

        return Segments(
            y=np.stack([_padded(y * counted[:, None], (locations, frames), np.float16) for y in signals]),
            kept=np.stack([np.arange(frames) < stop - start for start, stop in stretches]),
            frames=np.stack([_padded(own, (frames,), np.int32) for own in positions]),
            references=np.stack([_padded(mean, (len(mean), frames), np.float32) for mean in means]),
            xyz=over_locations(geometry.xyz[chosen], np.float32),
            hemisphere=over_locations(geometry.hemisphere[chosen], np.int32),
            counted=over_locations(counted, np.bool_),
            log_tsnr=np.stack([over_locations(np.where(counted, source.log_tsnr[chosen], 0), np.float32) for source in (a, b)]),
            tr=np.array([self.store.records[scan].tr for scan in scans], np.float32),
            record=np.array(scans[0], np.int32),
        )

    def _plan(self, number: int) -> _Plan:
        config = self.config
        epoch, position = divmod(number, len(self.numbers))
        order = self._orders.get(epoch, lambda: stream(config.seed, _ORDER, epoch).permutation(len(self.numbers)))
        of_subject = self.numbers[order[position]]
        rng = stream(config.seed, _EXAMPLE, number)
        first = of_subject[rng.integers(len(of_subject))]
        records = self.store.records
        others = [scan for scan in of_subject if scan != first and records[scan].space == records[first].space]
        if others and rng.random() < config.pairs:
            second = others[rng.integers(len(others))]
            stretches = [draw_stretch(rng, records[scan].frames, draw_length(rng, records[scan].tr, config)) for scan in (first, second)]
            return _Plan((first, second), (stretches[0], stretches[1]), rng)
        tr = records[first].tr
        lengths = draw_length(rng, tr, config), draw_length(rng, tr, config)
        return _Plan((first, first), draw_parts(rng, records[first].frames, tr, lengths, config.gap_seconds), rng)

    def _geometry_of(self, name: str) -> _Geometry:
        def make() -> _Geometry:
            space = read_space(self.store, name)
            region = nearest_reference(space.xyz, self.references)
            inside = np.flatnonzero(region >= 0)
            ones = np.ones(len(inside), np.float32)
            sums = scipy.sparse.csr_matrix((ones, (region[inside], inside)), shape=(len(self.references), len(space)))
            return _Geometry(space.xyz, space.hemisphere, cKDTree(space.xyz), region, sums)

        return self._geometry.get(name, make)

    def _source_of(self, scan: int) -> _Source:
        def make() -> _Source:
            own = read_locations(self.store, scan)
            geometry = self._geometry_of(self.store.records[scan].space)
            sizes = geometry.sums @ own.valid.astype(np.float32)
            tsnr, per_region = log_tsnr(own.mean, own.std, own.valid), (1 / np.maximum(sizes, 1))[:, None].astype(np.float32)
            return _Source(own.valid, tsnr, per_region, own.frames)

        return self._sources.get(scan, make)

    def _read(
        self, scan: int, stretch: Stretch, chosen: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "R t"], Bool[np.ndarray, " n"]]:
        """Read the signals of the chosen locations, z-scored over the stretch, the centred means of the regions, and which signals vary."""
        bounds = self.store.records[scan].bounds
        windows = [w for w in range(len(bounds) - 1) if bounds[w] < stretch[1] and bounds[w + 1] > stretch[0]]
        inside = [slice(max(stretch[0], bounds[w]) - bounds[w], min(stretch[1], bounds[w + 1]) - bounds[w]) for w in windows]
        stored = read_windows(self.store, scan, windows)
        y = np.concatenate([values[chosen, here] for values, here in zip(stored, inside, strict=True)], axis=1, dtype=np.float32)
        means = [self._means_of(scan, window, values) for window, values in zip(windows, stored, strict=True)]
        mean = np.concatenate([values[:, here] for values, here in zip(means, inside, strict=True)], axis=1)
        y -= y.mean(1, keepdims=True)
        spread = np.sqrt(np.einsum("vt,vt->v", y, y) / y.shape[1])
        varies = spread > _FLAT
        y /= np.where(varies, spread, 1)[:, None]
        return y, mean - mean.mean(1, keepdims=True), varies

    def _means_of(self, scan: int, window: int, values: Float[np.ndarray, "V n"]) -> Float[np.ndarray, "R n"]:
        """Mean signal of the reference regions in a window, cached because all examples that use the window need it."""

        def make() -> Float[np.ndarray, "R n"]:
            geometry = self._geometry_of(self.store.records[scan].space)
            return (geometry.sums @ values.astype(np.float32)) * self._source_of(scan).per_region

        return self._signals.get((scan, window), make)


def _padded(values: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    out = np.zeros(shape, dtype)
    out[tuple(slice(length) for length in values.shape)] = values
    return out


class _Cache:
    """Least-recently-used cache with a limit on the total size."""

    def __init__(self, limit: float, size: Callable[[Any], float] = lambda _: 1):
        self.limit, self.size, self.used = limit, size, 0.0
        self.values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()  # outside the lock: two threads may compute the same value, which is harmless
        with self.lock:
            if key not in self.values:
                self.values[key] = value
                self.used += self.size(value)
            while self.used > self.limit and len(self.values) > 1:
                self.used -= self.size(self.values.popitem(last=False)[1])
        return value


def _let_workers_start() -> None:
    """Prepare the process for grain's workers.

    The workers read absl's flags, which are not parsed unless absl owns the command line. When they are stopped, batches that were not
    fetched remain in shared memory; Python's resource tracker frees them at exit, and would report this as an error.
    """
    from absl import flags

    if _TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_TRACKER)  # the tracker is a process that inherits these options

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
