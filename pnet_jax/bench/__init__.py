"""`pnet bench`: how fast the kernels are, beside what the device could do. Needs jax and numpy alone.

To add an op, add a case to `cases.py`.
"""

from pnet_jax.bench import bare

bare.stand_in()
