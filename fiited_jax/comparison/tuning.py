"""The choice of a learning rate, from runs on the validation slice."""

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["choose_rate"]


def choose_rate(records: Sequence[dict[str, Any]]) -> float:
    """Return the learning rate of the highest AUC, the lowest of equal ones.

    Args:
      records: results of tuning runs; an AUC of `None` is that of a run that diverged
        and loses against any other.

    >>> aucs = {0.03: None, 0.1: 0.7, 0.3: 0.7}
    >>> choose_rate([{"learning_rate": rate, "auc": aucs[rate]} for rate in aucs])
    0.1
    """

    def rank(record: dict[str, Any]) -> tuple[float, float]:
        auc = -math.inf if record["auc"] is None else record["auc"]
        return -auc, record["learning_rate"]

    return min(records, key=rank)["learning_rate"]
