"""Training states of a run on disk."""

from __future__ import annotations

import errno
import json
import pathlib
from typing import Any

import jax
import numpy as np

from pnet_jax import parallel
from pnet_jax.checkpoint.arrays import FORMAT, attempt, check_space, quiet, reason
from pnet_jax.errors import SettingsError


class Saves:
    """Training states of a run, one folder per step; after `kill -9` at any moment, the last complete state remains.

    States are saved in the background during the following steps. All processes of a run must call all methods.
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int, config: dict[str, Any]) -> None:
        """Open the states in a folder, or start a new series.

        Args:
          folder: Folder of the run.
          keep: Number of latest states to keep.
          config: Configuration of the run; all states in a folder have the same configuration.

        Raises:
          SettingsError: If the folder contains states of another configuration or format.
        """
        from orbax.checkpoint import v1 as ocp

        self._folder = pathlib.Path(folder).absolute()
        self._config = json.loads(json.dumps(config))  # tuples become lists, as in the file
        policy = ocp.training.preservation_policies.LatestN(keep)
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        with quiet():
            self._states = ocp.training.Checkpointer(
                self._folder, save_decision_policy=always, preservation_policy=policy, cleanup_tmp_directories=True
            )

    @property
    def latest(self) -> int | None:
        """Step of the last complete state, or None."""
        return None if self._states.latest is None else self._states.latest.step

    def restore(self, like: Any) -> Any | None:
        """Restore the last complete state, with the shapes, types and shardings of `like`; None if there is no state yet.

        Raises:
          SettingsError: If the state is damaged, or has another format or configuration.
        """
        step = self.latest
        if step is None:
            return None
        where = f"state {step} in {self._folder}"
        damaged = f"{where} is damaged or was not written by pnet_jax; {self._way_back(step)}"
        found: Any = attempt(lambda: self._states.metadata(step).custom_metadata, damaged)
        if not isinstance(found, dict) or not {"format", "config", "checksums"} <= found.keys():
            raise SettingsError(damaged)
        if found["format"] != FORMAT:
            raise SettingsError(f"{where} has format {found['format']}, expected {FORMAT}; use a new folder")
        for key in sorted(found["config"].keys() | self._config.keys()):
            was, now = found["config"].get(key), self._config.get(key)
            if was != now:
                raise SettingsError(f"{where} was made with {_differing(key, was, now)}; use the same configuration, or a new folder")
        state = attempt(lambda: self._states.load(step, _abstract(like)), f"{where} is damaged: it cannot be read; {self._way_back(step)}")
        _check(state, found["checksums"], where, self._way_back(step))
        return state

    def _way_back(self, step: int) -> str:
        """Explain how to continue without a state that cannot be used; nothing is removed automatically."""
        earlier = [state.step for state in self._states.checkpoints if state.step < step]
        then = f"resume from state {max(earlier)}" if earlier else "start again; there is no earlier state"
        return f"remove the folder {self._folder / str(step)} to {then}"

    def weights(self, like: Any) -> Any:
        """Load only the averaged weights of the last complete state, to fine-tune them or to inspect a run in progress.

        Args:
          like: Weights with the desired shapes, types and shardings.

        Raises:
          SettingsError: If there is no state, or it is damaged.
        """
        from orbax.checkpoint import v1 as ocp

        if self.latest is None:
            raise SettingsError(f"{self._folder} contains no state of a training run")
        where = f"state {self.latest} in {self._folder}"
        part = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=part):
            found: Any = attempt(lambda: self._states.metadata(self.latest).custom_metadata["checksums"], f"{where} cannot be read")
            state: Any = attempt(lambda: self._states.load(self.latest, {"average": _abstract(like)}), f"{where} cannot be read")
        _check(state, found, where, self._way_back(self.latest))
        return state["average"]

    def save(self, step: int, state: Any) -> None:
        """Save a state in the background; the state may be donated to the next step at once.

        The checksums of its arrays (25 ms for 100 MB on a CPU) are saved with it.

        Raises:
          OSError: If the disk is full, or the previous save failed.
        """
        if self.latest == step:
            return
        check_space(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        metadata = {"format": FORMAT, "config": self._config, "checksums": _checksums(state)}
        try:
            with quiet():
                self._states.save_async(step, state, custom_metadata=metadata)
        except Exception as error:
            raise OSError(getattr(error, "errno", None) or errno.EIO, f"state not written ({reason(error)})", str(self._folder)) from error

    def close(self) -> None:
        """Wait until the last state is on disk."""
        with quiet():
            self._states.close()


def _checksums(state: Any) -> dict[str, int]:
    """Compute a checksum of each array by its path, independent of how the arrays are sharded over devices and processes."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    sums = parallel.sum_of_processes(np.array([_checksum(leaf) for _, leaf in leaves], np.uint32))
    return dict(zip(names, sums.tolist(), strict=True))


def _checksum(array: jax.Array) -> int:
    r""":math:`\sum_i (2 i + 1) b_i \bmod 2^{32}` over the bit patterns :math:`b_i` of the entries held by this process.

    A change of one entry always changes the sum, because odd factors are invertible. An integer sum does not depend on the order of its
    terms, and therefore not on the sharding of the array; a hash would require gathering the array. It is computed on the host, because the
    devices may be busy with a step.
    """
    total = 0
    for shard in array.addressable_shards:
        if shard.replica_id != 0:  # a copy on another device
            continue
        data = np.asarray(shard.data)
        words = data.view(f"uint{8 * data.dtype.itemsize}").astype(np.uint32, copy=False)
        places = np.zeros((), np.uint32)
        for axis, (cut, size) in enumerate(zip(shard.index, array.shape, strict=True)):
            along = np.arange(size, dtype=np.uint32)[cut].reshape([-1 if other == axis else 1 for other in range(data.ndim)])
            places = places * np.uint32(size) + along
        total += int(((2 * places + 1) * words).sum(dtype=np.uint32))
    return total % 2**32


def _check(state: Any, expected: dict[str, int], where: str, way_back: str) -> None:
    """Compare the arrays of a state with the checksums that were saved with it.

    Raises:
      SettingsError: If an array was changed.
    """
    for name, found in _checksums(state).items():
        if found != expected.get(name):
            raise SettingsError(f"{where} is damaged: {name} was changed after it was written; {way_back}")


def _abstract(like: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), like)


def _differing(key: str, was: Any, now: Any) -> str:
    """Name the value that differs: `optimiser.steps = 100, this run has 200`."""
    if isinstance(was, dict) and isinstance(now, dict):
        name = next(name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name))
        return _differing(f"{key}.{name}", was.get(name), now.get(name))
    return f"{key} = {was}, this run has {now}"
