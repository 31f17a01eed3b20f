"""Which columns of a table are what: a small TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from pathlib import Path
from typing import Any

from .lines import unreadable
from .stream import DataError

__all__ = ["TableSchema"]

_COLUMN = "the name of a column"
_COLUMNS = "a list of names of columns"


@dataclasses.dataclass(frozen=True)
class TableSchema:
    """Which columns of a table are the label, the dense features and the ids.

    Attributes:
      label: Column of the label, 0 or 1.
      ids: Columns of ids, a table each; at least one.
      dense: Columns of numbers.
      label_min: Where it is given, the label is any number instead, and 1 from here up.
      order_by: Column whose ascending values are the order of rows; by default they
        stay in the order of the file.
    """

    label: str
    ids: tuple[str, ...]
    dense: tuple[str, ...] = ()
    label_min: float | None = None
    order_by: str | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TableSchema:
        """Read a schema from TOML, with the attributes as keys.

        Args:
          path: The file, such as

            ```
            label = "clicked"
            ids = ["user", "item"]
            dense = ["price"]      # not needed, and so are those below
            label_min = 4
            order_by = "hour"
            ```

        Raises:
          DataError: The file cannot be read, is no TOML, lacks a key or has one that is
            unknown or of a wrong type; or a column is the label and a feature, or comes
            twice in a list.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise unreadable(path, error, "a readable TOML file") from error
        try:
            found = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: is not TOML ({error}); a schema such as "
                'label = "clicked" and ids = ["user", "item"], a line each, is needed'
            ) from error
        try:
            return cls(**_checked(found))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, each once."""
        order_by = () if self.order_by is None else (self.order_by,)
        columns = (self.label, *self.dense, *self.ids, *order_by)
        return tuple(dict.fromkeys(columns))


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a schema from the keys of a file."""
    known = [field.name for field in dataclasses.fields(TableSchema)]
    for key in found:
        if key not in known:
            raise DataError(
                f"key {key!r} is unknown, must be one of {', '.join(known)}"
            )
    for key in ("label", "ids"):
        if key not in found:
            raise DataError(f"key {key!r} is missing, label and ids are needed")
    checks = {
        "label": (_is_column, _COLUMN),
        "ids": (lambda value: _are_columns(value) and value, f"{_COLUMNS}, not empty"),
        "dense": (_are_columns, _COLUMNS),
        "label_min": (_is_number, "a finite number"),
        "order_by": (_is_column, _COLUMN),
    }
    for key, value in found.items():
        check, allowed = checks[key]
        if not check(value):
            raise DataError(f"key {key!r} is {value!r}, must be {allowed}")
    for key in ("ids", "dense"):
        columns = found.get(key, [])
        for column in columns:
            if columns.count(column) > 1:
                raise DataError(
                    f"key {key!r} has column {column!r} twice, must have it once"
                )
    label = found["label"]
    for key in ("ids", "dense", "order_by"):
        used = found.get(key, [])
        if label == used or (isinstance(used, list) and label in used):
            raise DataError(
                f"key {key!r} has column {label!r}, which is the label; features and "
                "order must be other columns"
            )
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in found.items()
    }


def _is_column(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_columns(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_column, value))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
