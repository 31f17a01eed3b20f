"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["replace_file"]


def replace_file(
    path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]
) -> None:
    """Write a file under a temporary name, then rename it to `path`.

    Args:
      path: File to write or replace; its folder must exist.
      write: Called with the open temporary file.

    Raises:
      OSError: The file cannot be written; `path` is then as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "name"
    ...     replace_file(path, lambda file: file.write(b"content"))
    ...     path.read_bytes()
    b'content'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
