"""A small graph neural network on connectomes, as one of the pipelines of a diagnosis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import InputError
from pnet_jax.evaluate.columns import fisher_z, layer_of, shared_parcels
from pnet_jax.evaluate.features import with_measure
from pnet_jax.evaluate.pipeline import Predictions, calibrated, repeats_of_folds
from pnet_jax.evaluate.scores import auc
from pnet_jax.evaluate.split import Split

WIDTH, DENSITY, DROPOUT = 32, 0.1, 0.3
RATE, DECAY, EPOCHS, BATCH, PATIENCE = 2e-3, 1e-2, 60, 32, 10


class GraphNetwork(nnx.Module):
    """Two rounds of message passing on a participant's strongest edges, mean pooling over parcels, and one logit.

    Nodes are initialised with their connectivity profiles in the principal directions of the training participants.

    Args:
      inputs: Number of principal directions.
      rngs: Random generators for initial weights and dropout.
    """

    def __init__(self, inputs: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(2 * inputs, WIDTH, rngs=rngs)
        self.second = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)])
        self.drop = nnx.Dropout(DROPOUT, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, nodes: Float[Array, "B K F"], graph: Float[Array, "B K K"]) -> Float[Array, " B"]:
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            nodes = self.drop(nnx.gelu(norm(layer(jnp.concatenate([nodes, graph @ nodes], -1)))))
        return self.out(nodes.mean(1))[:, 0]


def graph_predictions(cohort: Cohort, split: Split, y: Float[np.ndarray, " S"], *, inputs: int = 32, seed: int = 0) -> Predictions:
    """Train a graph network in every fold and predict the held-out rows.

    The number of epochs maximises the AUC on one inner fold of the training part; held-out rows are not read before the prediction.

    Args:
      cohort: Scans with Pearson correlations or signals.
      split: Folds.
      y: Classes, 0 or 1, `[S]`.
      inputs: Number of principal directions of the connectivity profiles.
      seed: Seed of weights, dropout and batches.

    Returns:
      Predictions; `penalties` is the number of epochs, since there is no penalty.

    Raises:
      SettingsError: If there are neither Pearson correlations nor signals.
      InputError: If no inner fold of a training part has both classes in both parts.
    """
    cohort = with_measure(cohort, "pearson")
    places = np.flatnonzero(shared_parcels(cohort, "pearson"))
    z = fisher_z(layer_of(cohort, "pearson")[:, places[:, None], places])
    z[:, range(len(places)), range(len(places))] = 0
    graph = np.stack([_strongest(one) for one in z])
    place = repeats_of_folds(split)
    repeats = max(place) + 1
    decision, probability = np.full((2, repeats, len(y)), np.nan)
    fold, epochs = np.full((repeats, len(y)), -1), np.zeros(len(split))
    for number, (train, test) in enumerate(split):
        repeat = place[number]
        nodes = _profiles(z, train, min(inputs, len(places)))
        fit, val = _inner(split, train, y)
        found, epochs[number], held = _trained(nodes, graph, y, fit, val, seed + number)
        decision[repeat, test] = found[test]
        probability[repeat, test], fold[repeat, test] = calibrated(held, y[val], found[test]), number
    return Predictions("graph network", decision, probability, fold, epochs)


def _inner(split: Split, train: Int[np.ndarray, " n"], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the first inner fold that has both classes in both parts.

    Raises:
      InputError: If there is no such fold.
    """
    for fit, val in split.inner(train, y):
        if np.ptp(y[train[fit]]) > 0 and np.ptp(y[train[val]]) > 0:
            return train[fit], train[val]
    raise InputError(f"{split.name}: no inner fold, which chooses the number of epochs, has both classes in both parts")


def _strongest(z: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Return the graph of the strongest positive edges, each row with sum 1."""
    cut = np.quantile(z[~np.eye(len(z), dtype=bool)], 1 - DENSITY)
    kept = np.where(z >= max(cut, 0), z, 0) + np.eye(len(z))
    return (kept / kept.sum(1, keepdims=True)).astype(np.float32)


def _profiles(z: Float[np.ndarray, "S K K"], train: Int[np.ndarray, " n"], inputs: int) -> Float[np.ndarray, "S K F"]:
    centred = z - z[train].mean(0)
    rows = centred[train].reshape(-1, z.shape[-1])
    basis = np.linalg.eigh(rows.T @ rows)[1][:, -inputs:]
    out = centred @ basis
    return (out / out[train].std()).astype(np.float32)


def _trained(
    nodes: np.ndarray, graph: np.ndarray, y: np.ndarray, fit: np.ndarray, val: np.ndarray, seed: int
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the decisions of all rows at the epoch with the best inner AUC, that epoch, and the inner decisions."""
    model = GraphNetwork(nodes.shape[2], nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adamw(RATE, weight_decay=DECAY), wrt=nnx.Param)
    step, apply = _programs()
    x, g, target = jnp.asarray(nodes), jnp.asarray(graph), jnp.asarray(y, jnp.float32)
    rng, best, kept, at = np.random.default_rng(seed), -1.0, np.zeros(len(y)), 0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(fit)
        for start in range(0, len(order) - len(order) % BATCH or len(order), BATCH):
            rows = np.resize(order[start : start + BATCH], BATCH)
            step(model, optimizer, x[rows], g[rows], target[rows])
        found = np.asarray(apply(model, x, g))
        score = float(auc(found[val], y[val]))
        if score > best:
            best, kept, at = score, found, epoch
        elif epoch - at >= PATIENCE:
            break
    return kept, float(at), kept[val]


def _programs() -> tuple[Callable[..., None], Callable[..., Array]]:
    @nnx.jit
    def step(model: GraphNetwork, optimizer: nnx.Optimizer, x: Array, g: Array, y: Array) -> None:
        model.train()
        slope = nnx.grad(lambda m: optax.sigmoid_binary_cross_entropy(m(x, g), y).mean())(model)
        with jax.numpy_dtype_promotion("standard"):  # optax combines integer counts and float rates
            optimizer.update(model, slope)

    @nnx.jit
    def apply(model: GraphNetwork, x: Array, g: Array) -> Array:
        model.eval()
        return jax.lax.map(lambda one: model(one[0][None], one[1][None])[0], (x, g), batch_size=64)

    return step, apply
