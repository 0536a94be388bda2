"""Linear models with a quadratic penalty on a kernel, for all penalties at once; scikit-learn fits those that have no closed form.

A kernel is the matrix of products of all rows' features. Ridge regression, logistic regression and the support vector machine with a
quadratic penalty depend on the features only through it, so that 20,000 edges cost no more than the number of scans.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.config import nearest
from pnet_jax.errors import SettingsError

MODELS = ("ridge", "logistic", "svm")
PENALTIES: Float[np.ndarray, " P"] = 10.0 ** np.arange(-3, 3.1, 0.5)  # of the kernel whose training rows have length 1 on average
SITE_PRIOR = 5.0  # scans at the overall mean that the mean of a site is shrunk by

Rows = Int[np.ndarray, " n"]


def kernel_of(x: Float[np.ndarray, "S F"], train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features less the training mean, scaled so that training rows have length 1 on average."""
    centred = x - x[train].mean(0)
    k = (centred @ centred.T).astype(np.float64)
    return k / np.diag(k)[train].mean()


def site_centred(k: Float[np.ndarray, "S S"], sites: np.ndarray, train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features less the mean of their site (shrunk, n / (n + 5)), scaled to length 1.

    It uses the scans of the held-out site, without their labels; where nearly all of a site's participants are of one class, what sets the
    class apart is lost.
    """
    h = np.eye(len(k))
    for site in np.unique(sites):
        here = np.flatnonzero(sites == site)
        h[np.ix_(here, here)] -= 1 / (len(here) + SITE_PRIOR)
    k = centred(h @ k @ h.T, train)
    length = np.sqrt(np.maximum(np.diag(k), np.finfo(float).tiny))
    return k / length / length[:, None]


def centred(k: Float[np.ndarray, "S S"], train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features less the mean of training rows."""
    mean = k[:, train].mean(1)
    return k - mean[None] - mean[:, None] + mean[train].mean()


def decisions(
    model: str,
    k: Float[np.ndarray, "S S"],
    y: Float[np.ndarray, "n B"],
    train: Rows,
    rows: Rows,
    penalties: Float[np.ndarray, " P"] = PENALTIES,
) -> Float[np.ndarray, "P r B"]:
    """Return the predictions for some rows by a model that is fitted to the training rows, for each penalty and target.

    Args:
      model: one of `MODELS`.
      k: kernel of all rows.
      y: targets of the training rows.
      train: training rows, in the order of y.
      rows: rows to predict.

    Raises:
      SettingsError: there is no such model.
    """
    if model not in MODELS:
        raise SettingsError(f"unknown model {model!r}: expected one of {', '.join(MODELS)}{nearest(model, MODELS)}")
    k = centred(k, train)
    within, across = k[np.ix_(train, train)], k[np.ix_(rows, train)]
    if model == "svm":
        return np.stack([_svm(within, across, one, penalties) for one in y.T], 2)
    value, vector = np.linalg.eigh(within)
    if model == "logistic":
        return np.stack([_logistic(across, value, vector, one, penalties) for one in y.T], 2)
    mean = y.mean(0)
    rotated, left = vector.T @ (y - mean), across @ vector
    value = np.maximum(value, 0)[:, None]
    return np.stack([left @ (rotated / (value + p)) for p in penalties]) + mean


def _svm(within: np.ndarray, across: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    from sklearn.svm import SVC

    return np.stack([SVC(C=1 / p, kernel="precomputed").fit(within, y).decision_function(across) for p in penalties])


def _logistic(k: np.ndarray, value: np.ndarray, vector: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    kept = value > 1e-10 * value[-1]
    coordinates = k @ (vector[:, kept] / np.sqrt(value[kept]))  # in the space that the training rows span
    own = vector[:, kept] * np.sqrt(value[kept])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence at the weakest penalties, which are not chosen then
        return np.stack([LogisticRegression(C=1 / p, max_iter=500).fit(own, y).decision_function(coordinates) for p in penalties])
