"""How far apart two results may be that differ only in the order in which floating-point sums are added."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def rounding(terms: int, *, scale: float = 1.0, condition: float = 1.0, dtype: DTypeLike = np.float32) -> float:
    r"""Absolute tolerance for sums of n terms that two programs, vector widths or devices add in different orders.

    .. math:: 2 \sqrt{n}\, \varepsilon \cdot \mathrm{scale} \cdot \mathrm{condition}

    Each of the n additions rounds by at most ε / 2 of a partial sum, with a standard deviation of ε / (2 √3) if roundings are independent.
    The sum is then off by √n ε / (2 √3) of its scale, the difference of two such sums by √2 times that, and the factor of 2 is five
    standard deviations of it: no entry of an array of a million is expected to lie beyond. Products fused with additions or not
    (FMA), wider vectors and another number of devices all change the order and nothing else.

    Args:
      terms: Length n of the longest sum; of sums in succession, the total.
      scale: Largest magnitude of the partial sums: the sum of the terms' sizes at most. 1 for correlations, cosines and shares.
      condition: Factor by which what follows the sum enlarges a small error: |f'| of a function, the concentration κ of a softmax over
        4, the condition number of a matrix that is inverted.
      dtype: Type in which the sums are added.

    >>> f"{rounding(400):.1e}", f"{rounding(400, dtype=np.float64):.1e}"
    ('4.8e-06', '8.9e-15')
    """
    return float(2 * np.sqrt(terms) * np.finfo(dtype).eps * scale * condition)
