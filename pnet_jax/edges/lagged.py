"""Lagged correlation: correlation at the lag of its largest absolute value."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.edges._clock import on_clock
from pnet_jax.edges.registry import register

MAX_LAG_SECONDS = 6.0  # approximate range of regional differences in haemodynamic delay
MIN_SHARE = 0.5  # minimum share of kept frames that are paired at a lag; r of few pairs is large by chance


class Lagged(NamedTuple):
    """Correlations at the best lags.

    Attributes:
      r: signed correlation at the lag of its largest absolute value, symmetric, `[K, K]`.
      lag: that lag in seconds, above 0 if parcel l (column) follows parcel k (row), antisymmetric, `[K, K]`.
    """

    r: Float[Array, "K K"]
    lag: Float[Array, "K K"]


def best_lag(
    signals: Float[Array, "K T"], *, tr: float, frames: Int[np.ndarray, " T"] | None = None, seconds: float = MAX_LAG_SECONDS
) -> Lagged:
    r"""Find the lag of the largest absolute correlation of each pair, up to `seconds` in both directions.

    .. math::
      r_{kl} = r_{kl}(\tau^*), \quad \tau^*_{kl} = \arg\max_{|\tau| \le L} |r_{kl}(\tau)|, \quad
      r_{kl}(\tau) = \mathrm{corr}_{t:\, t \text{ and } t + \tau \text{ kept}}(x_k(t), x_l(t + \tau))

    Lags are whole frames. Frames are paired only if both were kept and lie τ apart in the recording, so gaps are respected; means and
    variances are those of the pairs. Lags with fewer pairs than half of the kept frames are ignored. Of equal correlations, the one with
    the smallest lag is taken.

    The largest of 2L + 1 correlations exceeds that at lag 0 for independent signals too: compare scans of the same TR and length, and
    compare small values with those of surrogates. A lag in BOLD signals does not imply a direction of influence, because haemodynamic
    delays differ between regions.

    Args:
      signals: parcel signals, any unit, `[K, T]`.
      tr: repetition time in seconds.
      frames: indices of the T kept frames in the recording, ascending; default: consecutive frames.
      seconds: largest lag in seconds, rounded down to whole frames.

    Returns:
      Correlations with diagonal 1 and lags in seconds with diagonal 0; rows and columns of constant signals are NaN.

    Raises:
      ValueError: If `seconds` is below 0, `tr` is not above 0, or `frames` do not match the signals.

    Memory: twice the recording `[K, R]` and a few `[K, K]`. Time is proportional to K²R per lag.

    >>> x = jnp.array([0.0, 3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    >>> found = best_lag(jnp.stack([x, -jnp.roll(x, 1)]), tr=2.0)
    >>> print(f"{found.r[0, 1]:.2f} {found.lag[0, 1]:.0f} {found.lag[1, 0]:.0f}")
    -1.00 2 -2

    Source: Mitra, Snyder, Hacker & Raichle 2014, Journal of Neurophysiology (here with whole-frame lags, without interpolation).
    """
    if not seconds >= 0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    x, kept = on_clock(signals, tr, frames)
    most = int(seconds / tr + 1e-6)
    r, lag = _best(x, kept, most=most)
    return Lagged(r, lag.astype(jnp.float32) * jnp.float32(tr))


@register(
    "lagged",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description=f"Correlation of mean parcel signals at the lag of its largest absolute value, up to ±{MAX_LAG_SECONDS:g} s",
    needs=("tr", "frames"),
)
def lagged(signals: Float[Array, "K T"], *, tr: float, frames: Int[np.ndarray, " T"] | None = None) -> Float[Array, "K K"]:
    """Compute the correlations of `best_lag`, without the lags."""
    return best_lag(signals, tr=tr, frames=frames).r


@functools.partial(jax.jit, static_argnames="most")
def _best(x: Float[Array, "K R"], kept: Float[Array, " R"], *, most: int) -> tuple[Float[Array, "K K"], Int[Array, "K K"]]:
    # The end is padded with frames that do not count, so that frames wrapped around by a roll are paired only with these.
    x, kept = jnp.pad(x, ((0, 0), (0, most))), jnp.pad(kept, (0, most))

    def widen(best: tuple[Array, Array], lag: Array) -> tuple[tuple[Array, Array], None]:
        forwards, pairs = _correlation(x, kept, lag)
        backwards = forwards.T
        ahead, behind = jnp.abs(forwards) > jnp.abs(backwards), jnp.abs(backwards) > jnp.abs(forwards)
        here = jnp.where(ahead, forwards, jnp.where(behind, backwards, jnp.maximum(forwards, backwards)))
        # If both directions are equally good, the lag is 0.
        signed = lag * (ahead.astype(jnp.int32) - behind.astype(jnp.int32))
        better = (jnp.abs(here) > jnp.abs(best[0])) & (pairs >= MIN_SHARE * kept.sum())
        return (jnp.where(better, here, best[0]), jnp.where(better, signed, best[1])), None

    start = _correlation(x, kept, jnp.int32(0))[0]
    start = (start + start.T) / 2  # symmetric up to rounding
    (r, lag), _ = jax.lax.scan(widen, (start, jnp.zeros(start.shape, jnp.int32)), jnp.arange(1, most + 1, dtype=jnp.int32))
    own = jnp.eye(len(r), dtype=bool)
    return jnp.where(own & ~jnp.isnan(start), 1.0, r), jnp.where(own, 0, lag)


def _correlation(x: Float[Array, "K R"], kept: Float[Array, " R"], lag: Int[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, ""]]:
    """Return Pearson's r of each row at t with each row at t + lag over the pairs of kept frames, and the number of pairs."""
    both = kept * jnp.roll(kept, -lag)
    pairs = both.sum()
    first, then = (_standard(part, both, pairs) for part in (x, jnp.roll(x, -lag, axis=1)))
    return jnp.matmul(first, then.T, precision="highest"), pairs


def _standard(x: Float[Array, "K R"], both: Float[Array, " R"], pairs: Float[Array, ""]) -> Float[Array, "K R"]:
    """Centre the signals over the pairs and scale them to unit length, 0 elsewhere; NaN for a constant signal."""
    there = both[None] > 0
    centred = jnp.where(there, x - (jnp.where(there, x, 0.0).sum(1) / jnp.maximum(pairs, 1.0))[:, None], 0.0)
    size = jnp.sqrt(jnp.square(centred).sum(1))
    varies = size > 1e-5 * jnp.sqrt(jnp.where(there, jnp.square(x), 0.0).sum(1))
    return jnp.where(varies[:, None], centred / jnp.where(varies, size, 1.0)[:, None], jnp.nan)
