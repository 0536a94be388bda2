"""Linear models with a quadratic penalty in kernel form, for all penalties at once; models without a closed form use scikit-learn.

A kernel is the matrix of inner products between the features of all rows. Ridge regression, logistic regression and the support vector
machine depend on the features only through the kernel, so the cost is determined by the number of scans, not by the 20,000 edges.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.config import nearest
from pnet_jax.errors import SettingsError

MODELS = ("ridge", "logistic", "svm")
PENALTIES: Float[np.ndarray, " P"] = 10.0 ** np.arange(-3, 3.1, 0.5)  # relative to a kernel whose training rows have unit mean length
SITE_PRIOR = 5.0  # pseudo-scans at the overall mean that shrink the mean of a site

Rows = Int[np.ndarray, " n"]


def kernel_of(x: Float[np.ndarray, "S F"], train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features minus the training mean, scaled so that training rows have unit mean length."""
    centred = x - x[train].mean(0)
    k = (centred @ centred.T).astype(np.float64)
    return k / np.diag(k)[train].mean()


def site_centred(k: Float[np.ndarray, "S S"], sites: np.ndarray, train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features minus their (shrunk, n / (n + 5)) site mean, scaled to unit mean length.

    The site mean uses scans of the held-out site without their labels. If nearly all participants of a site have the same class, centring
    removes the class difference.
    """
    h = np.eye(len(k))
    for site in np.unique(sites):
        here = np.flatnonzero(sites == site)
        h[np.ix_(here, here)] -= 1 / (len(here) + SITE_PRIOR)
    k = centred(h @ k @ h.T, train)
    length = np.sqrt(np.maximum(np.diag(k), np.finfo(float).tiny))
    return k / length / length[:, None]


def centred(k: Float[np.ndarray, "S S"], train: Rows) -> Float[np.ndarray, "S S"]:
    """Return the kernel of features minus the mean of the training rows."""
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
    """Predict some rows with a model fitted to the training rows, for each penalty and target.

    Args:
      model: One of `MODELS`.
      k: Kernel of all rows.
      y: Targets of the training rows.
      train: Training rows, in the order of `y`.
      rows: Rows to predict.

    Raises:
      SettingsError: If the model is unknown.
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
    coordinates = k @ (vector[:, kept] / np.sqrt(value[kept]))  # coordinates in the span of the training rows
    own = vector[:, kept] * np.sqrt(value[kept])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence warnings at the weakest penalties, which are then not selected
        return np.stack([LogisticRegression(C=1 / p, max_iter=500).fit(own, y).decision_function(coordinates) for p in penalties])
