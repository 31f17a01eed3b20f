"""The choice of a learning rate, from runs on the validation slice."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["choose_rate"]


def choose_rate(records: Sequence[dict[str, Any]]) -> float:
    """Return the learning rate of the highest mean AUC, the lowest of equal ones.

    Args:
      records: results of tuning runs; an AUC of `None` is that of a run that diverged,
        and its learning rate loses against any other.

    >>> aucs = {0.03: None, 0.1: 0.7, 0.3: 0.7}
    >>> choose_rate([{"learning_rate": rate, "auc": aucs[rate]} for rate in aucs])
    0.1
    """

    def rank(rate: float) -> tuple[float, float]:
        aucs = [record["auc"] for record in records if record["learning_rate"] == rate]
        mean = -math.inf if None in aucs else statistics.fmean(aucs)
        return -mean, rate

    return min({record["learning_rate"] for record in records}, key=rank)
