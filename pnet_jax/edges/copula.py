"""Mutual information under a Gaussian copula."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from pnet_jax.edges.registry import register
from pnet_jax.ops.correlation import correlation

MOST_SHARED = 1 - 1e-6  # r² that float32 still tells from 1: 6.9 nats


def normal_scores(signals: Float[Array, "K T"]) -> Float[Array, "K T"]:
    """Each signal's ranks, ties at their mean, taken to the quantiles of a standard normal at rank / (T + 1)."""
    ranks = rankdata(signals, axis=1).astype(jnp.float32)
    return ndtri(ranks / (signals.shape[1] + 1))


@register(
    "gaussian_copula",
    units="nats",
    diagonal="0 by convention: a parcel's information on itself is infinite",
    signed=False,
    description="Gaussian-copula mutual information of mean parcel signals, without correction of its bias",
)
@jax.jit
def gaussian_copula(signals: Float[Array, "K T"]) -> Float[Array, "K K"]:
    r"""Mutual information of each pair in nats, from the correlation of ranks made normal; a constant signal gives NaN.

    .. math::
      I_{kl} = -\tfrac{1}{2} \log(1 - \rho_{kl}^2), \quad
      \rho = \mathrm{corr}\left(\Phi^{-1}\!\left(\tfrac{\mathrm{rank}\, x_k}{T + 1}\right),
      \Phi^{-1}\!\left(\tfrac{\mathrm{rank}\, x_l}{T + 1}\right)\right)

    No monotone change of a signal alters it. It is the information of the pair if their copula is Gaussian, and a lower bound on the
    information otherwise, up to sampling: a relation that is not monotone is missed. Positive and negative relations look alike.

    Independent signals do not give 0: over n independent frames the expectation is ½[ψ((n−1)/2) − ψ((n−2)/2)], about 1/(2n − 5). It is
    not subtracted, because the effective n of autocorrelated frames differs between pairs; compare scans of one length and band only.
    Beyond 6.9 nats (r² above 1 − 1e-6) float32 tells no difference, and 6.9 is given.

    Args:
      signals: any unit, `[K, T]`.

    Returns:
      Nats, at least 0; diagonal 0, or NaN for a constant signal; `[K, K]`.

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
