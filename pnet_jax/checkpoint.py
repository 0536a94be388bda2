"""Checkpoints on disk: the only file that knows orbax.

A checkpoint is a folder with the arrays (orbax) and, as their metadata, the model card, the format's version and the digest of
the weights. Everything a scan has to go through is rebuilt from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import importlib.resources
import json
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from pnet_jax import parallel
from pnet_jax.config import PerceiverConfig, nearest
from pnet_jax.encoder.linear import LinearEncoder
from pnet_jax.encoder.model import Encoder, Model
from pnet_jax.parcellation.prior import Prior

if TYPE_CHECKING:
    from pnet_jax.encoder.perceiver import PerceiverEncoder
    from pnet_jax.group.fit import Group

FORMAT = 1
RUN_MODEL = "model"  # in the folder of a training run
GROUP = "group model"
_SHIPPED = "checkpoints"
_METADATA = "_CHECKPOINT_METADATA"  # orbax' own; without it a folder is no checkpoint
_UNFINISHED = ".orbax-checkpoint-tmp"
_SPARE_BYTES = 1 << 20
_LATE_SECONDS = 0.3  # reads that were under way when the first of them failed call back within this

T = TypeVar("T")


def save_model(model: Model, folder: str | pathlib.Path, *, replace: bool = False) -> pathlib.Path:
    """Writes a model to a new folder; orbax writes to a temporary name and renames. With several processes all of them call it.

    Args:
      model: what to write.
      folder: where to.
      replace: an older checkpoint that is there goes once the new one is complete.

    Raises:
      ValueError: the folder exists and is not to be replaced.
      OSError: the folder cannot be made or the disk is too full; nothing of the checkpoint is left.
    """
    folder, leads = pathlib.Path(folder).absolute(), jax.process_index() == 0
    there = folder.exists()
    parallel.meet("saving a model")  # all have looked
    if there and replace:
        new = folder.with_name(folder.name + "-new")
        if leads:
            shutil.rmtree(new, ignore_errors=True)
        save_model(model, new)
        if leads:
            shutil.rmtree(folder)
            new.rename(folder)
        parallel.meet("model replaced")
        return folder
    if there:
        raise ValueError(f"checkpoint {folder} exists already: expected a new folder")
    priors = {str(k): _prior_arrays(prior) for k, prior in model.priors.items()}
    texts = {str(k): {"names": list(p.names), "source": p.source, "space": p.space} for k, p in model.priors.items()}
    metadata: dict[str, Any] = {"format": FORMAT, "name": model.name, "digest": model.digest, "card": model.card, "priors": texts}
    encoder, config = _encoder_arrays(model.encoder)
    arrays = {"encoder": encoder, "priors": priors}
    if config is not None:
        metadata["perceiver"] = dataclasses.asdict(config)
    _write(folder, arrays, metadata)
    return folder


def _write(folder: pathlib.Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_space(folder, sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays)))
    try:
        with _quiet():
            ocp.save(folder, arrays, custom_metadata=metadata)
        marker = folder / "commit_success.txt"
        if jax.process_index() == 0 and marker.exists():  # orbax asks only whether it is there, and writes the machine's path into it
            marker.write_text("complete\n", "utf-8")
    except BaseException as error:
        shutil.rmtree(folder.with_name(folder.name + _UNFINISHED), ignore_errors=True)
        if isinstance(error, OSError | ValueError):
            raise OSError(getattr(error, "errno", None) or errno.EIO, f"checkpoint not written ({_reason(error)})", str(folder)) from error
        raise


def save_arrays(arrays: dict[str, Any], folder: str | pathlib.Path, *, kind: str, metadata: dict[str, Any]) -> pathlib.Path:
    """Writes arrays that belong together, and what they are, to a new folder.

    Args:
      arrays: nested dicts.
      folder: where to.
      kind: what they are, in a word; who reads them asks for it.
      metadata: what JSON can hold.

    Raises:
      ValueError: the folder exists.
      OSError: the folder cannot be made or the disk is too full; nothing is left of it.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists already: expected a new folder")
    _write(folder, arrays, {**metadata, "format": FORMAT, "kind": kind})
    return folder


def load_arrays(folder: str | pathlib.Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save_arrays` wrote: arrays and metadata.

    Raises:
      ValueError: there is no such folder, it is damaged, of another kind or of another format.
    """
    from orbax.checkpoint import v1 as ocp

    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: expected a folder with {kind}")
    metadata: Any = _attempt(lambda: ocp.metadata(folder).custom_metadata, f"{folder} is damaged or holds no {kind}")
    if not isinstance(metadata, dict) or metadata.get("kind") != kind or metadata.get("format") != FORMAT:
        said = [metadata.get(key) for key in ("kind", "format")] if isinstance(metadata, dict) else []
        found = f"{said[0] or 'a model'} of format {said[1]}" if any(said) else "neither kind nor format"
        raise ValueError(f"{folder}: expected {kind} of format {FORMAT}, found {found}")
    arrays: Any = _attempt(lambda: jax.tree.map(np.asarray, ocp.load(folder)), f"{folder} is damaged: it cannot be read")
    return arrays, metadata


def load_model(name_or_folder: str | pathlib.Path) -> Model:
    """A model by name (`list_models()`) or from a folder.

    Raises:
      ValueError: no such model (the nearest name is given) or folder, a damaged checkpoint, or one of another version.
    """
    from orbax.checkpoint import v1 as ocp

    folder = _find(name_or_folder)
    metadata: Any = _attempt(lambda: ocp.metadata(folder).custom_metadata, f"checkpoint {folder} is damaged or not a checkpoint")
    if not isinstance(metadata, dict) or "format" not in metadata:
        raise ValueError(f"checkpoint {folder} was not written by pnet_jax: it has no format number")
    if metadata["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {folder} has format {metadata['format']}, expected {FORMAT}: use the pnet_jax that wrote it, or pretrain again"
        )

    def read() -> tuple[Model, str]:
        arrays: Any = jax.tree.map(np.asarray, ocp.load(folder))
        encoder = _encoder(arrays["encoder"], metadata.get("perceiver"))
        priors = {int(k): _prior(values, metadata["priors"][k]) for k, values in arrays["priors"].items()}
        return Model(metadata["name"], encoder, priors, metadata["card"]), metadata["digest"]

    model, expected = _attempt(read, f"checkpoint {folder} is damaged: it cannot be read")
    if not isinstance(model.encoder, LinearEncoder):
        _check_shapes(model.encoder, folder)
    if model.digest != expected:
        raise ValueError(f"checkpoint {folder} is damaged: expected weights digest {expected}, found {model.digest}")
    return model


def save_group(group: Group, folder: str | pathlib.Path) -> None:
    """Writes a group model to a new folder.

    Raises:
      ValueError, OSError: as `save_arrays`.
    """
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"atlas": group.atlas, "subjects": list(group.subjects)}
    if group.spatial is not None:
        arrays["spatial"] = group.spatial._asdict()
        about["resolution"] = arrays["spatial"].pop("resolution")
    if group.shrinkage is not None and group.guide is not None:
        guide = group.guide
        arrays["shrinkage"] = group.shrinkage._asdict()
        arrays["guide"] = guide._asdict() | {"edges": guide.edges._asdict(), "pairs": guide.pairs._asdict()}
    if (h := group.hierarchy) is not None:
        arrays["dynamics"] = {"group": h.group._asdict(), "subgroups": h.subgroups, "variance": h.variance, "error": h.error}
    save_arrays(jax.tree.map(np.asarray, arrays), folder, kind=GROUP, metadata=about)


def load_group(folder: str | pathlib.Path) -> Group:
    """The group model in a folder that `pnet fit-group` wrote.

    Raises:
      ValueError: there is no such folder, it holds none, or is damaged.
    """
    from pnet_jax.dynamics.fit import Hierarchy  # with optax, which networks without a group do without
    from pnet_jax.dynamics.linear_stochastic import Params
    from pnet_jax.edges.guided import Guide, Moments
    from pnet_jax.edges.shrinkage import Shrinkage
    from pnet_jax.group.fit import Group
    from pnet_jax.parcellation.spatial import LearnedPrior

    folder = pathlib.Path(folder)
    if not (folder / _METADATA).is_file():
        found = _listing(folder) if folder.is_dir() else "no such folder"
        raise ValueError(f"group {folder}: expected a folder that `pnet fit-group` wrote, found {found}")
    arrays, about = load_arrays(folder, kind=GROUP)
    spatial, shrinkage, guide, hierarchy = None, None, None, None
    if "spatial" in arrays:
        spatial = LearnedPrior(**arrays["spatial"], resolution=about["resolution"])
    if "guide" in arrays:
        g = arrays["guide"]
        shrinkage = Shrinkage(**arrays["shrinkage"])
        guide = Guide(g["mean"], g["modes"], Moments(**g["edges"]), Moments(**g["pairs"]), g["weights"], g["scale"])
    if "dynamics" in arrays:
        d = arrays["dynamics"]
        hierarchy = Hierarchy(Params(**d["group"]), d["subgroups"], d["variance"], d["error"])
    return Group(about["atlas"], tuple(about["subjects"]), spatial, shrinkage, guide, hierarchy)


def _listing(folder: pathlib.Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}" or "an empty folder"


class Saves:
    """The states of a training run, one folder a step; `kill -9` at any moment leaves the last complete one.

    Saving goes on in the background while the next steps are taken. All processes of a run call all methods.
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int, config: dict[str, Any]) -> None:
        """Opens, or begins, the states in a folder.

        Args:
          folder: of the run.
          keep: so many last states stay.
          config: what the run was told; a folder holds states of one configuration.

        Raises:
          ValueError: the folder holds states of another configuration or format.
        """
        from orbax.checkpoint import v1 as ocp

        self._folder = pathlib.Path(folder).absolute()
        self._config = json.loads(json.dumps(config))  # tuples become lists, as in what is read back
        policy = ocp.training.preservation_policies.LatestN(keep)
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        with _quiet():
            self._states = ocp.training.Checkpointer(
                self._folder, save_decision_policy=always, preservation_policy=policy, cleanup_tmp_directories=True
            )

    @property
    def latest(self) -> int | None:
        """The step of the last complete state."""
        return None if self._states.latest is None else self._states.latest.step

    def restore(self, like: Any) -> Any | None:
        """The last complete state, with the shapes, types and shardings of `like`; None at the beginning of a run.

        Raises:
          ValueError: the state is damaged, or of another format or configuration.
        """
        step = self.latest
        if step is None:
            return None
        where = f"state {step} in {self._folder}"
        damaged = f"{where} is damaged or was not written by pnet_jax; {self._way_back(step)}"
        found: Any = _attempt(lambda: self._states.metadata(step).custom_metadata, damaged)
        if not isinstance(found, dict) or "format" not in found:
            raise ValueError(damaged)
        if found["format"] != FORMAT:
            raise ValueError(f"{where} has format {found['format']}, expected {FORMAT}: begin in a new folder")
        for key in sorted(found["config"].keys() | self._config.keys()):
            was, now = found["config"].get(key), self._config.get(key)
            if was != now:
                raise ValueError(f"{where} was made with {_differing(key, was, now)}: expected the same, or a new folder")
        return _attempt(lambda: self._states.load(step, _abstract(like)), f"{where} is damaged: it cannot be read; {self._way_back(step)}")

    def _way_back(self, step: int) -> str:
        """What to do about a state that cannot be used; nothing is removed unasked."""
        earlier = [state.step for state in self._states.checkpoints if state.step < step]
        then = f"go on from state {max(earlier)}" if earlier else "begin again, for there is no earlier one"
        return f"remove the folder {self._folder / str(step)} to {then}"

    def weights(self, like: Any) -> Any:
        """The averaged weights of the last complete state, and nothing else of it: to fine-tune, or to look at a run under way.

        Args:
          like: weights with the shapes, types and shardings wanted.

        Raises:
          ValueError: there is no state, or it is damaged.
        """
        from orbax.checkpoint import v1 as ocp

        if self.latest is None:
            raise ValueError(f"{self._folder} holds no state of a training run")
        part = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=part):
            where = f"state {self.latest} in {self._folder}"
            return _attempt(lambda: self._states.load(self.latest, {"average": _abstract(like)}), f"{where} cannot be read")["average"]

    def save(self, step: int, state: Any) -> None:
        """Saves a state in the background; the state may be donated to the next step at once.

        Raises:
          OSError: the disk is too full, or the save before this one failed.
        """
        if self.latest == step:
            return
        _check_space(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        try:
            with _quiet():
                self._states.save_async(step, state, custom_metadata={"format": FORMAT, "config": self._config})
        except Exception as error:
            raise OSError(getattr(error, "errno", None) or errno.EIO, f"state not written ({_reason(error)})", str(self._folder)) from error

    def close(self) -> None:
        """Waits until the last state is on disk."""
        with _quiet():
            self._states.close()


def _abstract(like: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), like)


def _differing(key: str, was: Any, now: Any) -> str:
    """`optimiser.steps = 100, this run has 200`: down to the value that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        name = next(name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name))
        return _differing(f"{key}.{name}", was.get(name), now.get(name))
    return f"{key} = {was}, this run has {now}"


def list_models() -> list[str]:
    """Names of the models that ship with the package."""
    shipped = pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED
    return sorted(path.name for path in shipped.iterdir() if path.is_dir()) if shipped.is_dir() else []


def _attempt(read: Callable[[], T], said: str) -> T:
    """Runs a read; what goes wrong in it becomes one line, and orbax's tasks are cleared away before they can complain."""
    with _quiet():
        try:
            return read()
        except Exception as error:  # noqa: BLE001  damage shows as any of orbax's errors
            reason = f"{type(error).__name__}: {_reason(error)}"
        logging.getLogger("asyncio").addFilter(_is_not_of_a_read)  # some tasks are noticed at the very end
        time.sleep(_LATE_SECONDS)
        gc.collect()
    raise ValueError(f"{said} ({reason})")


def _is_not_of_a_read(record: logging.LogRecord) -> bool:
    return "tensorstore_spec" not in record.getMessage()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split(" [tensorstore_spec", 1)[0].split())
    return text if len(text) < 300 else f"{text[:300]} …"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that orbax and its event loop log for an error that is raised as well."""
    loggers = [logger for logger in map(logging.getLogger, ("absl", "asyncio")) if not logger.disabled]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else hook(found)
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.disabled = False


def _check_space(folder: pathlib.Path, needed: int) -> None:
    """Refuses what will not fit: orbax's threads do not stop cleanly on a full disk."""
    free = shutil.disk_usage(folder.parent).free
    if free < needed + _SPARE_BYTES:
        size = f"{(needed + _SPARE_BYTES) / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, f"No space left on device for the checkpoint: {size}", str(folder))


def _find(name_or_folder: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(name_or_folder)
    if str(name_or_folder) in list_models():
        return pathlib.Path(str(importlib.resources.files("pnet_jax"))) / _SHIPPED / str(name_or_folder)
    if folder.is_dir():
        exported = folder / RUN_MODEL  # a folder of a training run holds its model
        return (exported if exported.is_dir() else folder).absolute()
    hint = nearest(str(name_or_folder), list_models())
    raise ValueError(f"checkpoint {name_or_folder} is missing: expected a folder or one of {list_models()}{hint}")


def _encoder_arrays(encoder: Encoder) -> tuple[dict[str, Any], PerceiverConfig | None]:
    if isinstance(encoder, LinearEncoder):
        return dict(encoder._asdict()), None
    return {"linear": dict(encoder.linear._asdict()), "params": encoder.params}, encoder.config


def _encoder(arrays: dict[str, Any], config: dict[str, Any] | None) -> Encoder:
    if config is None:
        return LinearEncoder(**arrays)
    from pnet_jax.encoder.perceiver import PerceiverEncoder  # with flax, which a linear checkpoint can do without

    return PerceiverEncoder(LinearEncoder(**arrays["linear"]), arrays["params"], PerceiverConfig(**config))


def _check_shapes(encoder: PerceiverEncoder, folder: pathlib.Path) -> None:
    """Refuses weights that are not those of the configuration beside them."""
    from pnet_jax.encoder.perceiver import init

    def shapes(params: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    try:
        expected = shapes(jax.eval_shape(lambda: init(encoder.linear, encoder.config, jax.random.key(0)).params))
    except ValueError as error:
        raise ValueError(f"checkpoint {folder}: configuration and weights disagree: {error}") from error
    found = shapes(encoder.params)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"checkpoint {folder}: configuration and weights disagree: {name} has shape {found.get(name, 'none')}, "
                f"expected {expected.get(name, 'none')}"
            )


def _prior_arrays(prior: Prior) -> dict[str, np.ndarray]:
    return {
        "xyz": prior.xyz.astype(np.float32),
        "labels": prior.labels.astype(np.int32),
        "hemisphere": prior.hemisphere.astype(np.int32),
        "ids": prior.ids.astype(np.int32),
        "resolution": np.float32(prior.resolution).reshape(1),
    }


def _prior(arrays: dict[str, Any], texts: dict[str, Any]) -> Prior:
    return Prior(
        xyz=np.asarray(arrays["xyz"]),
        labels=np.asarray(arrays["labels"]),
        hemisphere=np.asarray(arrays["hemisphere"]).astype(np.int8),
        ids=np.asarray(arrays["ids"]),
        names=tuple(texts["names"]),
        resolution=float(np.asarray(arrays["resolution"])[0]),
        source=texts["source"],
        space=texts["space"],
    )
