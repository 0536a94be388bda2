"""Multi-device and multi-process execution. Only this module builds meshes and shardings and starts `jax.distributed`.

A mesh has two axes. Nothing is exchanged along "subject"; along "location", steps exchange sums over locations. Sizes that the mesh does
not divide are padded, and a mask marks the real rows.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pnet_jax.config import ParallelConfig

AXES = ("subject", "location")
LONGEST_WAIT = 7 * 86400  # seconds to wait for the other processes to finish, since parts of a cohort differ in duration
_MOST_DIMENSIONS = 8  # largest number of dimensions of an array whose shape is compared across processes


class ProcessLostError(RuntimeError):
    """Another process of the job was lost, so no further collective operation is possible, not even a clean shutdown."""


class Process(NamedTuple):
    """Index of this process and number of processes."""

    number: int
    total: int


def start(config: ParallelConfig | None = None, *, timeout: int = 300) -> Process:
    """Join the processes of one job; call this function before any other use of JAX.

    Coordinator, number of processes and process index are taken from the config if given. Otherwise, JAX queries SLURM, Open MPI,
    Kubernetes (GKE) and Cloud TPU pods; without any of these, this is the only process. Repeated calls have no effect.

    Args:
      config: Settings; see `ParallelConfig`.
      timeout: Seconds to wait for the other processes.

    Returns:
      Index of this process and number of processes.

    Raises:
      ValueError: If the cluster provides too little information.
      RuntimeError: If JAX was already in use, or the other processes did not connect.
    """
    config = config or ParallelConfig()
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(
                config.coordinator,
                config.processes,
                config.process,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=2 * config.heartbeat + 30,  # so that `watch` reports first
                shutdown_timeout_seconds=LONGEST_WAIT,
            )
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise
            return Process(0, 1)  # no cluster: JAX found no coordinator
    return Process(jax.process_index(), jax.process_count())


def watch(config: ParallelConfig, lost: Callable[[str], None]) -> Callable[[], None]:
    """Call `lost` with a message when another process has been silent for `config.heartbeat` seconds.

    JAX also ends the remaining processes, but later and with a stack trace; a process that waits for a lost one in a collective operation
    cannot report it. Therefore a thread monitors the others.

    Returns:
      Function that ends the monitoring.
    """
    from jax._src import distributed  # key-value store of the processes, for which JAX has no public API

    over = threading.Event()
    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return over.set
    own, pause = jax.process_index(), max(config.heartbeat / 5, 0.2)
    others = [number for number in range(jax.process_count()) if number != own]
    seen: dict[int, tuple[str, float]] = {}

    def look(number: int, beat: int) -> None:
        client.key_value_set(f"pnet_jax/beat/{own}", str(beat), allow_overwrite=True)
        found, now = client.key_value_try_get(f"pnet_jax/beat/{number}"), time.monotonic()
        if number not in seen or seen[number][0] != found:
            seen[number] = found, now

    def ask() -> None:
        for beat in itertools.count():
            for number in others:
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # not started yet, or the coordinator was lost
                    look(number, beat)
                if number in seen and time.monotonic() - seen[number][1] > config.heartbeat and not over.is_set():
                    return lost(f"process {number} has been silent for {config.heartbeat} s")
            if over.wait(pause):
                return

    threading.Thread(target=ask, daemon=True).start()
    return over.set


def make_mesh(config: ParallelConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build a mesh ("subject", "location") over the devices of all processes.

    Args:
      config: Number of parts along each axis. An axis that is None takes the remaining devices; if both are None, "subject" takes all.
      devices: Devices to use; all by default.

    Returns:
      Mesh with Auto axes: the compiler chooses the sharding of intermediate arrays.

    Raises:
      ValueError: If the product of the parts is not the number of devices.

    >>> dict(make_mesh(ParallelConfig(location=1), jax.devices()[:1]).shape)
    {'subject': 1, 'location': 1}
    """
    config = config or ParallelConfig()
    devices = list(jax.devices() if devices is None else devices)
    subject, location = config.subject, config.location
    if subject is None:
        location = location or 1
        subject = max(len(devices) // location, 1)
    elif location is None:
        location = max(len(devices) // subject, 1)
    if subject * location != len(devices):
        given = f"subject={config.subject}, location={config.location}"
        raise ValueError(f"a mesh needs subject x location = number of devices, {len(devices)}; got {given}")
    return jax.make_mesh((subject, location), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Build the sharding of an array: for each dimension, the mesh axis that splits it, or None.

    Raises:
      ValueError: If the mesh has no such axis, or an axis is named twice.

    >>> tuple(sharding(make_mesh(devices=jax.devices()[:1]), "subject", None).spec)
    ('subject', None)
    """
    named = [axis for axis in axes if axis is not None]
    if unknown := [axis for axis in named if axis not in mesh.axis_names]:
        raise ValueError(f"mesh axes are {', '.join(mesh.axis_names)}; got {unknown[0]!r}")
    if len(set(named)) < len(named):
        raise ValueError(f"each mesh axis splits one dimension at most, got {axes}")
    return NamedSharding(mesh, PartitionSpec(*axes))


def layout(tree: Any, rules: Sequence[tuple[str, tuple[str | None, ...]]], mesh: Mesh) -> Any:
    """Choose the sharding of every array in a tree by its path.

    Args:
      tree: Arrays or their shapes.
      rules: Pairs of a regular expression and mesh axes, one axis per dimension. The first expression found in an array's path
          (`"blocks/mlp/kernel"`) applies. Arrays without a matching rule, or with a shape that the axes do not divide, are replicated.
      mesh: Device mesh.

    Returns:
      Tree of shardings with the structure of `tree`.

    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> tuple(layout({"kernel": np.ones((4, 2))}, (("kernel$", (None, "subject")),), mesh)["kernel"].spec)
    (None, 'subject')
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf)
        axes = next((axes for rule, axes in rules if re.search(rule, name)), ())
        fits = len(axes) <= len(shape) and all(not axis or size % mesh.shape[axis] == 0 for size, axis in zip(shape, axes, strict=False))
        return sharding(mesh, *(axes if fits else ()))

    return jax.tree_util.tree_map_with_path(one, tree)


def padded(size: int, parts: int) -> int:
    """Round `size` up to a multiple of `parts`.

    >>> padded(10, 8)
    16
    """
    return math.ceil(size / parts) * parts


def pad(tree: Any, mesh: Mesh, axis: str = "subject", *, dim: int = 0, fill: float = 0) -> tuple[Any, np.ndarray]:
    """Append rows to every array so that a mesh axis divides their number.

    Args:
      tree: NumPy or JAX arrays with equal size along `dim`.
      axis: Mesh axis that will split the rows.
      dim: Dimension to pad.
      fill: Value of the new rows; −1 for tables of candidates or neighbours.

    Returns:
      The padded tree, and a mask that is True for real rows, `[padded size]`.

    Raises:
      ValueError: If the arrays differ in size along `dim`, or there are none.

    >>> x, real = pad(np.ones((3, 2)), make_mesh(devices=jax.devices()[:1]))
    >>> x.shape, real.tolist()
    ((3, 2), [True, True, True])
    """
    sizes = sorted({np.shape(leaf)[dim] for leaf in jax.tree.leaves(tree)})
    if len(sizes) != 1:
        raise ValueError(f"expected arrays of one size along dimension {dim}, got sizes {sizes}")
    target = padded(sizes[0], sharding(mesh, axis).mesh.shape[axis])

    def one(leaf: Any) -> Any:
        widths = [(0, target - sizes[0] if d == dim else 0) for d in range(np.ndim(leaf))]
        return (jnp if isinstance(leaf, jax.Array) else np).pad(leaf, widths, constant_values=fill)

    return jax.tree.map(one, tree), np.arange(target) < sizes[0]


def place(tree: Any, mesh: Mesh, *axes: str | None) -> Any:
    """Place arrays that this process holds completely on the mesh, split along the named dimensions.

    Raises:
      ValueError: If a dimension is not a multiple of the number of its parts.
    """
    target = sharding(mesh, *axes)
    for leaf in jax.tree.leaves(tree):
        _check_divides(np.shape(leaf), {axis: mesh.shape[axis] for axis in axes if axis}, axes, "an array")
    return jax.device_put(tree, target)


def stack(parts: Sequence[np.ndarray], to: NamedSharding) -> jax.Array:
    """Stack arrays of one shape along a new first axis on the devices; each part is transferred separately while the devices compute.

    Args:
      parts: S arrays of the same shape and dtype.
      to: Sharding of the stacked array; the first axis may be split.

    Returns:
      Array `[S, ...]`, equal to `np.stack(parts)`.

    >>> stack([np.zeros(2), np.ones(2)], sharding(make_mesh(devices=jax.devices()[:1]), "subject")).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    shape = (len(parts), *np.shape(parts[0]))
    pieces = []
    for device, index in to.addressable_devices_indices_map(shape).items():
        rows, *rest = index or (slice(None),)
        here = [jax.device_put(np.asarray(part)[(None, *rest)], device) for part in parts[rows]]
        pieces.append(here[0] if len(here) == 1 else _joined(*here))
    return jax.make_array_from_single_device_arrays(shape, to, pieces)


@jax.jit
def _joined(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)


def over_subjects(step: Callable[..., Any], mesh: Mesh, *, shared: int = 0) -> Callable[..., Any]:
    """Turn a step for one subject into a compiled step for many subjects.

    Every device runs the step for its own subjects with `vmap`; nothing is exchanged along "subject", whatever the step does. A subject's
    result is bit-for-bit independent of the other subjects and of its position among them. Along "location", arrays keep their sharding on
    the mesh (`layout`); the compiler splits the step accordingly and inserts the required communication.

    Args:
      step: Function from and to trees of arrays of one subject.
      shared: Number of leading arguments that are shared by all subjects (an encoder, a prior).

    Returns:
      Function of the same arguments, in which all unshared arrays, and all results, have a leading axis S.

    Raises:
      ValueError: When called with arrays whose S the mesh does not divide.

    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> over_subjects(lambda scale, x: scale * x.sum(), mesh, shared=1)(2.0, jnp.ones((3, 4))).tolist()
    [8.0, 8.0, 8.0]
    """
    each = PartitionSpec("subject")

    def wave(same: tuple[Any, ...], own: tuple[Any, ...]) -> Any:
        if len(jax.tree.leaves(own)[0]) > 1:
            return jax.vmap(lambda own: step(*same, *own))(own)
        # Products of a batch of 1 round differently from those of larger batches, and from those of a single subject.
        return jax.tree.map(lambda x: x[None], step(*same, *jax.tree.map(lambda x: x[0], own)))

    def run(*arguments: Any) -> Any:
        same, own = arguments[:shared], arguments[shared:]
        for leaf in jax.tree.leaves(own):
            _check_divides(np.shape(leaf), {"subject": mesh.shape["subject"]}, ("subject",), "an array")
        names = {"subject"} if mesh.shape["location"] > 1 else set(mesh.axis_names)
        specs = (PartitionSpec(), each)
        return jax.shard_map(wave, mesh=mesh, in_specs=specs, out_specs=each, axis_names=names, check_vma=False)(same, own)

    return jax.jit(run)


def global_array(local: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    """Assemble one global array from the part that each process holds.

    Args:
      local: Rows of this process. Dimensions that are not split, or whose mesh axis lies within every process, must be complete.
      axes: As for `sharding`.

    Returns:
      Array whose split dimensions concatenate the rows of the processes, in the order of the mesh.

    Raises:
      ValueError: If the shapes differ between processes, or the devices of a process do not divide its rows.
    """
    target, local = sharding(mesh, *axes), np.asarray(local)
    # Every process checks all shapes, so that all of them stop and none waits for the others.
    shapes = _shapes_everywhere(local.shape)
    if len(set(shapes)) > 1:
        told = ", ".join(f"process {index} {shape}" for index, shape in enumerate(shapes))
        raise ValueError(f"expected the same shape in every process (pad the last rows), got {told}")
    _check_divides(local.shape, {axis: _parts_here(mesh, axis) for axis in axes if axis}, axes, "the part of a process")
    return jax.make_array_from_process_local_data(target, local)


def to_host(array: jax.Array) -> np.ndarray:
    """Gather a global array as a complete NumPy array in every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def any_process(here: bool) -> bool:
    """Return whether the condition holds in any process; a collective operation."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.asarray(multihost_utils.process_allgather(np.array(here))).any())


def sum_of_processes(values: np.ndarray) -> np.ndarray:
    """Sum an array over the processes in its own type; all of them receive the sum, and integers wrap around."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).sum(0, dtype=values.dtype)


def meet(why: str) -> None:
    """Wait until every process has reached this call."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(why)


def _shapes_everywhere(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if jax.process_count() == 1:
        return [shape]
    from jax.experimental import multihost_utils

    mine = np.full(_MOST_DIMENSIONS, -1, np.int32)
    mine[: len(shape)] = shape
    return [tuple(int(n) for n in row if n >= 0) for row in np.asarray(multihost_utils.process_allgather(mine))]


def _parts_here(mesh: Mesh, axis: str) -> int:
    """Return the number of parts into which an axis splits the arrays of this process."""
    here = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
    return len(np.unique(np.nonzero(here)[mesh.axis_names.index(axis)]))


def _check_divides(shape: tuple[int, ...], parts: dict[str, int], axes: Sequence[str | None], what: str) -> None:
    if len(axes) > len(shape):
        raise ValueError(f"{len(axes)} dimensions are named ({', '.join(map(str, axes))}), but {what} has shape {shape}")
    for dim, axis in enumerate(axes):
        if axis and shape[dim] % parts[axis]:
            raise ValueError(
                f"dimension {dim} of {what} is split along {axis!r} into {parts[axis]} parts: "
                f"expected a multiple of {parts[axis]}, got {shape[dim]}"
            )
