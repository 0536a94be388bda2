from pnet_jax.ops.correlation.api import correlation

__all__ = ["correlation"]
