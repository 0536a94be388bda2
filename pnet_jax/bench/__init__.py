"""`pnet bench`: speed of the kernels relative to the limits of the device. Requires only jax and numpy.

To add an op, add a case to `cases.py`.
"""

from pnet_jax.bench import bare

bare.stand_in()
