"""One step of gradient descent: pure, compiled once, and identical on one device or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pnet_jax.config import OptimiserConfig

T = TypeVar("T")
_VALIDATION = 2**31 - 1  # random stream not used by any step
Loss = Callable[[Any, Any, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


class TrainState(NamedTuple):
    """Everything that a training step updates.

    Attributes:
      step: Number of completed steps.
      params: Weights in training.
      average: Exponential moving average of the weights, which is exported.
      optimiser: State of the optax optimiser.
    """

    step: Int[Array, ""]
    params: Any
    average: Any
    optimiser: Any


def make_optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """Build AdamW with gradient clipping, warm-up and cosine decay to 0; weight decay applies to matrices, not to norms and biases."""
    warmup = max(1, round(config.warmup * config.steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, config.rate, warmup, max(config.steps, warmup + 1))
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=matrices),
    )


def initial_state(params: Any, optimiser: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimiser.init(params))


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, config: OptimiserConfig, seed: int
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Build the training step `(state, batch) -> (state, metrics)`.

    Random numbers depend on the seed and the step alone, so a resumed run is identical to an uninterrupted one. With `accumulate` = n, the
    batch is processed in n parts, one after another, and their gradients are averaged.

    Args:
      loss: Function of weights, batch and key that returns the loss and its terms.
      optimiser: Optimiser from `make_optimiser`.
      config: Decay of the weight average, and number of parts of a batch.
      seed: Seed of all random numbers.

    Returns:
      The step. Its metrics are the loss, its terms, and `gradient_norm` before clipping.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def part(params: Any, batch: Any, key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        (value, terms), gradient = value_and_grad(params, batch, key)
        return gradient, {"loss": value, **terms}

    whole = _in_parts(part, config.accumulate)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient, numbers = whole(state.params, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax combines integer counts and float rates
            updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        # Decay is lower in early steps, so that the initial weights are soon forgotten.
        taken = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.average, (1.0 + taken) / (10.0 + taken))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, params)
        return TrainState(state.step + 1, params, average, optimiser_state), {**numbers, "gradient_norm": optax.tree.norm(gradient)}

    return step


def make_validation(loss: Loss, config: OptimiserConfig, seed: int) -> Callable[[Any, Any, Int[Array, ""]], dict[str, Float[Array, ""]]]:
    """Build the objectives on held-out batches: `(weights, batch, number of the batch) -> metrics`.

    Random numbers depend on the seed and the number of the batch, so that every evaluation uses the same batches, locations and masks.

    Args:
      loss: Function of weights, batch and key that returns the loss and its terms.
      config: Number of parts of a batch.
      seed: Seed of all random numbers.
    """

    def part(params: Any, batch: Any, key: PRNGKeyArray) -> dict[str, Array]:
        value, terms = loss(params, batch, key)
        return {"loss": value, **terms}

    whole = _in_parts(part, config.accumulate)

    def numbers(params: Any, batch: Any, number: Int[Array, ""]) -> dict[str, Array]:
        return whole(params, batch, jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _VALIDATION), number))

    return numbers


def _in_parts(part: Callable[[Any, Any, PRNGKeyArray], T], count: int) -> Callable[[Any, Any, PRNGKeyArray], T]:
    """Average the results of a function over the parts of a batch, processed one after another."""

    def whole(params: Any, batch: Any, key: PRNGKeyArray) -> T:
        if count == 1:
            return part(params, batch, key)
        # Rows i, i + n, i + 2n …: each part has rows on every device; consecutive rows would leave devices idle.
        parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
        taken = (parts, jax.random.split(key, count))
        shapes = jax.eval_shape(part, params, *jax.tree.map(lambda x: x[0], taken))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, part(params, *one)), None), zero, taken)
        return jax.tree.map(lambda x: x / count, total)

    return whole
