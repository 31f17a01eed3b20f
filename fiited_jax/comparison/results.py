"""The file of results: one line of JSON per finished cell."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["ResultsFile"]

_BEGIN = b'{"key"'  # of every line that is written here
_NEEDED = {"auc", "log_loss", "all_in_bytes", "values_bytes"} | {
    "all_in_ratio",
    "values_ratio",
}


class ResultsFile:
    """Results by key, kept on disk; a line is added when a cell is finished.

    Lines of other comparisons stay as they are. A last line without its end, left by a
    run that was killed, is dropped. Of two lines with one key the first counts.

    Args:
      path: The file; made if it is not there.

    Raises:
      OSError: It cannot be read or written.
      ValueError: It has a line that is no result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        content = path.read_bytes() if path.exists() else b""
        *whole, last = content.split(b"\n")
        for number, line in enumerate(whole, 1):
            record = _parse(line)
            if record is None:
                raise ValueError(
                    f"{path}: line {number} is not a result of fiited compare; "
                    "remove the line or choose another folder as out"
                )
            self._records.setdefault(record["key"], record)
        if last[: len(_BEGIN)] != _BEGIN[: len(last)]:
            raise ValueError(
                f"{path}: its last line is not a result of fiited compare; remove the "
                "line or choose another folder as out"
            )
        if last:
            os.truncate(path, len(content) - len(last))

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of a key, `None` if there is none."""
        return self._records.get(key)

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write a result and see it onto the disk.

        Args:
          record: plain values; holds its `key`.

        Returns:
          The record as it is read back.

        Raises:
          OSError: it cannot be written.
        """
        text = json.dumps(record, allow_nan=False)
        with self._path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return self._records.setdefault(record["key"], json.loads(text))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_result = (
        isinstance(record, dict)
        and isinstance(record.get("key"), str)
        and ("refused" in record or record.keys() >= _NEEDED)
    )
    return record if is_result else None
