"""Correlation at the lag where it is largest."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.edges._clock import on_clock
from pnet_jax.edges.registry import register

MAX_LAG_SECONDS = 6.0  # about how far haemodynamic delays of regions lie apart
MIN_SHARE = 0.5  # of the kept frames must have a partner for a lag to count: r of a few pairs is large by chance


class Lagged(NamedTuple):
    """Correlation at its best lag.

    Attributes:
      r: correlation at the lag where it is largest in size, signed, `[K, K]`, symmetric.
      lag: that lag in seconds, above 0 where parcel l (column) follows parcel k (row), `[K, K]`, antisymmetric.
    """

    r: Float[Array, "K K"]
    lag: Float[Array, "K K"]


def best_lag(
    signals: Float[Array, "K T"], *, tr: float, frames: Int[np.ndarray, " T"] | None = None, seconds: float = MAX_LAG_SECONDS
) -> Lagged:
    r"""Correlation of each pair at the lag, up to `seconds` either way, where it is largest in size; and that lag.

    .. math::
      r_{kl} = r_{kl}(\tau^*), \quad \tau^*_{kl} = \arg\max_{|\tau| \le L} |r_{kl}(\tau)|, \quad
      r_{kl}(\tau) = \mathrm{corr}_{t:\, t \text{ and } t + \tau \text{ kept}}(x_k(t), x_l(t + \tau))

    Lags are whole frames. Only frames that were both kept, and lie τ apart in the recording, are paired, so that nothing is
    related across a gap; means and variances are those of the pairs. A lag with fewer pairs than half of the kept frames does not
    count. Of equal correlations the smallest lag is taken.

    The largest of 2L + 1 correlations lies above that at lag 0 for independent signals too: compare scans of one TR and length, and
    small values with those of surrogates. A lag in BOLD is no direction of influence: haemodynamic delays differ by region.

    Args:
      signals: any unit, `[K, T]`.
      tr: seconds between frames.
      frames: positions of the T kept frames in the recording, ascending; all in a row if not given.
      seconds: largest lag; rounded down to whole frames.

    Returns:
      Correlations, diagonal 1, and lags in seconds, diagonal 0. Constant signals have NaN rows and columns.

    Raises:
      ValueError: `seconds` is below 0, `tr` not above 0, or `frames` do not fit the signals.

    Memory: twice the recording `[K, R]` and a few `[K, K]`. Time grows with K²R a lag.

    >>> x = jnp.array([0.0, 3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    >>> found = best_lag(jnp.stack([x, -jnp.roll(x, 1)]), tr=2.0)
    >>> print(f"{found.r[0, 1]:.2f} {found.lag[0, 1]:.0f} {found.lag[1, 0]:.0f}")
    -1.00 2 -2

    Source: Mitra, Snyder, Hacker & Raichle 2014, Journal of Neurophysiology (lags by whole frames here, not interpolated).
    """
    if not seconds >= 0:
        raise ValueError(f"seconds must be 0 or more, got {seconds}")
    x, kept = on_clock(signals, tr, frames)
    most = int(seconds / tr + 1e-6)
    r, lag = _best(x, kept, most=most)
    return Lagged(r, lag.astype(jnp.float32) * jnp.float32(tr))


@register(
    "lagged",
    units="correlation (r)",
    diagonal="1",
    signed=True,
    description=f"Correlation of mean parcel signals at the lag, up to {MAX_LAG_SECONDS:g} s either way, where it is largest in size",
    needs=("tr", "frames"),
)
def lagged(signals: Float[Array, "K T"], *, tr: float, frames: Int[np.ndarray, " T"] | None = None) -> Float[Array, "K K"]:
    """`best_lag` without the lags; which of the two parcels comes first is lost."""
    return best_lag(signals, tr=tr, frames=frames).r


@functools.partial(jax.jit, static_argnames="most")
def _best(x: Float[Array, "K R"], kept: Float[Array, " R"], *, most: int) -> tuple[Float[Array, "K K"], Int[Array, "K K"]]:
    # Behind the end stand frames that were not kept: a roll that wraps around pairs with these only.
    x, kept = jnp.pad(x, ((0, 0), (0, most))), jnp.pad(kept, (0, most))

    def widen(best: tuple[Array, Array], lag: Array) -> tuple[tuple[Array, Array], None]:
        forwards, pairs = _correlation(x, kept, lag)
        backwards = forwards.T
        ahead, behind = jnp.abs(forwards) > jnp.abs(backwards), jnp.abs(backwards) > jnp.abs(forwards)
        here = jnp.where(ahead, forwards, jnp.where(behind, backwards, jnp.maximum(forwards, backwards)))
        # Where both directions are equally good there is no telling which parcel leads.
        signed = lag * (ahead.astype(jnp.int32) - behind.astype(jnp.int32))
        better = (jnp.abs(here) > jnp.abs(best[0])) & (pairs >= MIN_SHARE * kept.sum())
        return (jnp.where(better, here, best[0]), jnp.where(better, signed, best[1])), None

    start = _correlation(x, kept, jnp.int32(0))[0]
    start = (start + start.T) / 2  # the same but for rounding
    (r, lag), _ = jax.lax.scan(widen, (start, jnp.zeros(start.shape, jnp.int32)), jnp.arange(1, most + 1, dtype=jnp.int32))
    own = jnp.eye(len(r), dtype=bool)
    return jnp.where(own & ~jnp.isnan(start), 1.0, r), jnp.where(own, 0, lag)


def _correlation(x: Float[Array, "K R"], kept: Float[Array, " R"], lag: Int[Array, ""]) -> tuple[Float[Array, "K K"], Float[Array, ""]]:
    """Pearson's r of each row at t with each row at t + lag, over the pairs of kept frames; and how many pairs there are."""
    both = kept * jnp.roll(kept, -lag)
    pairs = both.sum()
    first, then = (_standard(part, both, pairs) for part in (x, jnp.roll(x, -lag, axis=1)))
    return jnp.matmul(first, then.T, precision="highest"), pairs


def _standard(x: Float[Array, "K R"], both: Float[Array, " R"], pairs: Float[Array, ""]) -> Float[Array, "K R"]:
    """Centred over the pairs and of length 1, 0 elsewhere; NaN where a signal does not vary."""
    there = both[None] > 0
    centred = jnp.where(there, x - (jnp.where(there, x, 0.0).sum(1) / jnp.maximum(pairs, 1.0))[:, None], 0.0)
    size = jnp.sqrt(jnp.square(centred).sum(1))
    varies = size > 1e-5 * jnp.sqrt(jnp.where(there, jnp.square(x), 0.0).sum(1))
    return jnp.where(varies[:, None], centred / jnp.where(varies, size, 1.0)[:, None], jnp.nan)
