"""Metrics of click prediction."""

from typing import NamedTuple

import numpy as np
from sklearn import metrics

__all__ = ["AucSoFar", "TestMetrics", "test_metrics"]


class TestMetrics(NamedTuple):
    """Quality on a test split.

    Attributes:
      auc: area under the ROC curve.
      log_loss: mean negative log-likelihood, in nats.
      normalized_entropy: log loss over that of always predicting the click rate.
    """

    auc: float
    log_loss: float
    normalized_entropy: float


TestMetrics.__test__ = False  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics(labels: np.ndarray, probabilities: np.ndarray) -> TestMetrics:
    """Score predictions.

    Args:
      labels: `[n]`, 0 or 1; both occur, else the AUC is NaN.
      probabilities: `[n]` predicted click probabilities.

    Returns:
      A `TestMetrics`; NaN throughout if a prediction is not finite.
    """
    if not np.all(np.isfinite(probabilities)):
        return TestMetrics(np.nan, np.nan, np.nan)
    click_rate = np.full(len(labels), labels.mean())
    log_loss = metrics.log_loss(labels, probabilities, labels=[0, 1])
    if 0 < click_rate[0] < 1:
        auc = metrics.roc_auc_score(labels, probabilities)
        entropy = metrics.log_loss(labels, click_rate, labels=[0, 1])
        return TestMetrics(float(auc), float(log_loss), float(log_loss / entropy))
    return TestMetrics(np.nan, float(log_loss), np.nan)


test_metrics.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


class AucSoFar:
    """AUC of a stream in bounded memory: a histogram of predictions per class.

    Predictions within one bin count as ties, so the error is at most half the share
    of pairs that share a bin.

    >>> auc = AucSoFar()
    >>> auc.add(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.05]))
    >>> auc.value()
    0.5
    """

    def __init__(self, num_bins: int = 1 << 14) -> None:
        """Start with nothing seen."""
        self._counts = np.zeros((2, num_bins), np.int64)

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Count predictions; those that are not finite are left out.

        Args:
          labels: `[n]`, 0 or 1.
          probabilities: `[n]`, in `[0, 1]`.
        """
        known = np.isfinite(probabilities)
        num_bins = self._counts.shape[1]
        bins = np.minimum(probabilities[known] * num_bins, num_bins - 1).astype(int)
        for label in (0, 1):
            chosen = bins[labels[known] == label]
            self._counts[label] += np.bincount(chosen, minlength=num_bins)

    def value(self) -> float:
        """Return the AUC, NaN before both classes have been seen."""
        negatives, positives = self._counts
        pairs = int(negatives.sum()) * int(positives.sum())
        if pairs == 0:
            return float("nan")
        below = np.cumsum(negatives) - negatives
        return float(np.sum(positives * (below + negatives / 2)) / pairs)
