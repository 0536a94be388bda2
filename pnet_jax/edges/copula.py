"""Mutual information under a Gaussian copula."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register
from pnet_jax.ops.correlation import correlation

MOST_SHARED = 1 - 1e-6  # largest r² that float32 distinguishes from 1; 6.9 nats


def normal_scores(signals: Float[Array, "K T"]) -> Float[Array, "K T"]:
    """Transform each signal to normal quantiles at rank / (T + 1); ties have their mean rank."""
    ranks = rankdata(signals, axis=1).astype(jnp.float32)
    return ndtri(ranks / (signals.shape[1] + 1))


@register(
    "gaussian_copula",
    units="nats",
    diagonal="0 by convention: the mutual information of a parcel with itself is infinite",
    signed=False,
    description="Gaussian-copula mutual information of mean parcel signals, without bias correction",
)
@jax.jit
def gaussian_copula(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Compute the Gaussian-copula mutual information of each pair in nats, from the correlation of rank-based normal scores.

    .. math::
      I_{kl} = -\tfrac{1}{2} \log(1 - \rho_{kl}^2), \quad
      \rho = \mathrm{corr}\left(\Phi^{-1}\!\left(\tfrac{\mathrm{rank}\, x_k}{T + 1}\right),
      \Phi^{-1}\!\left(\tfrac{\mathrm{rank}\, x_l}{T + 1}\right)\right)

    It is invariant to monotone transformations of the signals. It equals the mutual information of the pair if their copula is Gaussian,
    and is a lower bound otherwise, up to sampling error: dependence that is not monotone is missed. The sign of a relation is lost.

    For independent signals and n independent frames, the expectation is not 0 but ½[ψ((n−1)/2) − ψ((n−2)/2)], about 1/(2n − 5). This bias
    is not subtracted, because the effective n of autocorrelated frames differs between pairs; compare only scans of the same length and
    band. Values are capped at 6.9 nats (r² = 1 − 1e-6), the limit of float32.

    Args:
      signals: parcel signals, any unit, `[K, T]`.

    Returns:
      Mutual information in nats, at least 0, with diagonal 0, `[K, K]`; NaN for a constant signal.

    Memory: a few times the signals, plus the result.

    >>> x = jnp.array([[0.0, 1.0, 2.0, 3.0, 4.0], [3.0, 1.0, 2.0, 0.0, 5.0]])
    >>> print(gaussian_copula(x)[0, 1] == gaussian_copula(jnp.exp(x))[0, 1])
    True

    Source: Ince, Giordano, Kayser, Rousselet, Gross & Schyns 2017, Human Brain Mapping.
    """
    shared = jnp.square(correlation(normal_scores(jnp.asarray(signals))[None])[0])
    information = -0.5 * jnp.log1p(-jnp.minimum(shared, MOST_SHARED))
    own = jnp.eye(len(signals), dtype=bool) & ~jnp.isnan(shared)
    return jnp.where(own, 0.0, information)
