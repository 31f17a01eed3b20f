"""Whether every id of a run has found an entry."""

from typing import Any

__all__ = ["StoreFullError", "check_room"]


class StoreFullError(Exception):
    """Ids have lost their entry or got none, and the options do not allow that."""


def check_room(record: dict[str, Any], num_ids: int) -> None:
    """Check one line of metrics.jsonl.

    Args:
      record: with counts since the line before.
      num_ids: distinct (table, id) pairs of the training split.

    Raises:
      StoreFullError: if keys were evicted or lookups failed, saying what to change.
    """
    evicted, failed = record["evicted"], record["failed"]
    if evicted or failed:
        raise StoreFullError(
            f"the store is out of entries at step {record['step']}: {evicted} keys "
            f"evicted and {failed} lookups without an entry since the last log line. "
            "Raise budget (or lower compression), or lower frames_per_entry, which "
            "makes more entries of the same budget; it takes more of them than the "
            f"training split has (table, id) pairs, {num_ids}, because buckets fill "
            "unevenly. on_full=evict goes on instead"
        )
