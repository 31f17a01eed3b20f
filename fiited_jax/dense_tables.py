"""Dense tables that come from elsewhere: checked, and read as rows; on the host."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .config import EmbeddingConfig
from .keys import Keys, keys_from_int64
from .utility import MAX_UTILITY

__all__ = [
    "PerTable",
    "Rows",
    "by_table",
    "check_tables",
    "padded",
    "read_rows",
    "rows_per_block",
]

PerTable: TypeAlias = Sequence[Any] | Mapping[int, Any]

_BLOCK_VALUES = 1 << 19  # values that are read at a time
_PADDING = np.uint64(0xFFFFFFFFFFFFFFFF)  # `keys.PADDING_KEY` as one number


class Rows(NamedTuple):
    """Rows of all tables, in the order of tables and rows; NumPy arrays.

    Attributes:
      low: `u32[R]` low words of their ids.
      high: `u32[R]` high words.
      table: `i32[R]`.
      row: `i64[R]` within the table.
      utility: `f32[R, U]`.
    """

    low: Any
    high: Any
    table: Any
    row: Any
    utility: Any


def rows_per_block(config: EmbeddingConfig) -> int:
    """Return how many rows to read at a time."""
    return max(_BLOCK_VALUES // config.embedding_dim, 1)


def padded(rows: np.ndarray, config: EmbeddingConfig) -> np.ndarray:
    """Return rows of a table `[n, dim]` as vectors `[n, D]`, zeros behind them."""
    return np.pad(rows, ((0, 0), (0, config.embedding_dim - rows.shape[1])))


def check_tables(tables: PerTable, config: EmbeddingConfig) -> dict[int, np.ndarray]:
    """Bring tables to the host, by number, lowest first.

    Args:
      tables: a sequence or a dict of `[num_rows, D]` arrays; D of the table, with
        `config.table_dims`.
      config: sizes and rules.

    Returns:
      NumPy arrays in the dtype they came in.

    Raises:
      TypeError, ValueError: on what cannot be tables of this config.
    """
    numbered = _numbered("tables", tables)
    dense = {}
    for number, array in sorted(numbered.items()):
        name = f"tables[{number}]"
        if not 0 <= number < config.num_tables:
            raise ValueError(
                f"tables must have numbers in [0, {config.num_tables}), the "
                f"num_tables of the config; got {number}"
            )
        dtype = _dtype_of(name, array)
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 4:
            raise TypeError(
                f"{name} must be float32, bfloat16 or float16, which the store holds "
                f"exactly; got {dtype}: convert with .astype('float32')"
            )
        dim = config.dim_of(number)
        if array.ndim != 2 or array.shape[1] != dim:
            rule = "embedding_dim" if config.table_dims is None else "table_dims"
            raise ValueError(
                f"{name} must have shape [num_rows, {dim}], the {rule} of the config; "
                f"got {array.shape}"
            )
        dense[number] = np.asarray(array)
    return dense


def by_table(
    name: str, given: PerTable | None, dense: Mapping[int, np.ndarray]
) -> dict[int, Any]:
    """Tell which table an optional argument is for.

    Args:
      name: of the argument.
      given: a sequence or a dict, with `None` where a table has none.
      dense: the tables.

    Returns:
      What is given, by table number.

    Raises:
      TypeError: on another container.
      ValueError: on a sequence of another length than the tables', and on tables that
        are not there.
    """
    if given is None:
        return {}
    numbered = _numbered(name, given)
    if isinstance(given, Sequence) and numbered.keys() != dense.keys():
        raise ValueError(
            f"{name} must be a dict by table number, or a sequence as long as that of "
            f"the tables; got {len(given)} for tables {list(dense)}"
        )
    for number in numbered:
        if number not in dense:
            raise ValueError(
                f"{name} must be for tables that are given, {list(dense)}; "
                f"got table {number}"
            )
    return {number: part for number, part in numbered.items() if part is not None}


def read_rows(
    dense: Mapping[int, np.ndarray],
    ids: Mapping[int, Any],
    utilities: Mapping[int, Any],
    config: EmbeddingConfig,
) -> tuple[Rows, float]:
    """Read who the rows of all tables are and what they are worth.

    Args:
      dense: the tables, lowest number first.
      ids: per table; 0, 1, 2 and on where there are none.
      utilities: per table; L2 norms where there are none.
      config: sizes and rules.

    Returns:
      The rows, and the squared L2 norm of all tables.

    Raises:
      TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    width, total = config.num_utilities, 0.0
    kinds = (np.uint32, np.uint32, np.int32, np.int64)
    columns: list[list[np.ndarray]] = [[np.empty(0, kind)] for kind in kinds]
    columns.append([np.empty((0, width), np.float32)])
    for number, array in dense.items():
        num_rows = len(array)
        words = _words_of(f"ids[{number}]", ids.get(number), num_rows, config)
        _check_rows(f"ids[{number}]", words, number, config)
        squares = _squares(f"tables[{number}]", array, config)
        total += float(squares.sum())
        worth = np.sqrt(squares, out=squares)
        if number in utilities:
            name = f"utilities[{number}]"
            num_chunks = array.shape[1] // config.chunk_dim
            shape = (num_rows, num_chunks)
            worth = _utility_of(name, utilities[number], shape, config)
        worth = np.minimum(worth, MAX_UTILITY).astype(np.float32)
        table, row = np.full(num_rows, number, np.int32), np.arange(num_rows)
        for column, new in zip(columns, (*words, table, row, worth), strict=True):
            column.append(new)
    return Rows(*(np.concatenate(column) for column in columns)), total


def _squares(name: str, array: np.ndarray, config: EmbeddingConfig) -> np.ndarray:
    """Squared L2 norms of what each utility is for, `f64[num_rows, U]`."""
    squares = np.empty((len(array), config.num_utilities))
    block = rows_per_block(config)
    for begin in range(0, len(array), block):
        part = slice(begin, begin + block)
        # Wide: squares of float32 are finite. In one order: sums have the same bits.
        wide = np.square(padded(array[part].astype(np.float64, order="C"), config))
        squares[part] = wide.reshape(len(wide), config.num_utilities, -1).sum(axis=-1)
    is_bad = ~np.isfinite(squares).all(axis=1)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        values = array[row].astype(np.float32)
        raise ValueError(
            f"{name} must be finite, row {row} has {values[~np.isfinite(values)][0]}"
        )
    return squares


def _utility_of(
    name: str, given: Any, shape: tuple[int, int], config: EmbeddingConfig
) -> np.ndarray:
    """Given utilities of so many rows and chunks, `f64[num_rows, U]`."""
    dtype = _dtype_of(name, given)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be numbers, got {dtype}")
    shapes: list[tuple[int, ...]] = [shape[:1]]
    if config.ranking == "chunks":
        shapes.append(shape)
    if given.shape not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} must have shape {allowed} with ranking={config.ranking!r}, "
            f"got {given.shape}"
        )
    wide = np.asarray(given).astype(np.float64).reshape(shape[0], -1)
    is_bad = ~((wide >= 0) & np.isfinite(wide)).all(axis=1)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        raise ValueError(
            f"{name} must be finite and at least 0, row {row} has {wide[row]}"
        )
    if config.ranking == "chunks":
        wide = np.broadcast_to(wide, shape)
        return np.pad(wide, ((0, 0), (0, config.num_chunks - shape[1])))
    return wide


def _words_of(
    name: str, given: Any, num_rows: int, config: EmbeddingConfig
) -> tuple[Any, Any]:
    """Words of the ids of a table, two `u32[num_rows]`."""
    if given is None:
        return keys_from_int64(np.arange(num_rows, dtype=np.uint64))
    ids = _wide_ids(name, given)
    if ids.shape != (num_rows,):
        raise ValueError(
            f"{name} must have shape ({num_rows},), an id for each row; got {ids.shape}"
        )
    words = keys_from_int64(ids)
    if np.any(ids == _PADDING):
        row = int(np.argmax(ids == _PADDING))
        raise ValueError(f"{name} must not be padding, row {row} is PADDING_KEY")
    if config.id_bits == 32 and np.any(words.high):
        row = int(np.argmax(words.high > 0))
        raise ValueError(
            f"{name} must be below 2^32 with id_bits=32, row {row} is {ids[row]}"
        )
    order = np.argsort(ids, kind="stable")
    is_again = ids[order][1:] == ids[order][:-1]
    if is_again.any():
        first, second = order[np.argmax(is_again) :][:2]
        raise ValueError(
            f"{name} must be distinct, rows {first} and {second} are both {ids[first]}"
        )
    return words


def _check_rows(
    name: str, words: tuple[Any, Any], table: int, config: EmbeddingConfig
) -> None:
    """Refuse ids that are no rows of `table_sizes`."""
    if config.table_sizes is None:
        return
    low, high = words
    size = config.table_sizes[table]
    is_bad = (high > 0) | (low >= size)
    if np.any(is_bad):
        row = int(np.argmax(is_bad))
        raise ValueError(
            f"{name} must be below table_sizes[{table}]={size}, row {row} is "
            f"{int(high[row]) << 32 | int(low[row])}"
        )


def _wide_ids(name: str, given: Any) -> np.ndarray:
    """Ids of any accepted form, as `u64[...]`."""
    if isinstance(given, Keys):
        for word, part in zip(Keys._fields, given, strict=True):
            if _dtype_of(f"{name}.{word}", part) != np.uint32:
                raise TypeError(f"{name}.{word} must be uint32, got {part.dtype}")
        low, high = (np.asarray(part).astype(np.uint64) for part in given)
        if low.shape != high.shape:
            raise ValueError(
                f"{name}.low and {name}.high must have one shape, got {low.shape} "
                f"and {high.shape}"
            )
        return high << np.uint64(32) | low
    dtype = _dtype_of(name, given)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be integers or fj.Keys, got {dtype}")
    array = np.asarray(given)
    if array.ndim == 1 and np.any(array < 0):
        row = int(np.argmax(array < 0))
        raise ValueError(
            f"{name} must be at least 0, row {row} is {array[row]}; 64-bit hashes are "
            "given as fj.keys_from_int64(ids)"
        )
    return array.astype(np.uint64)


def _numbered(name: str, given: Any) -> dict[int, Any]:
    """A sequence or a dict, as a dict by table number."""
    if isinstance(given, Sequence) and not isinstance(given, str | bytes | Keys):
        return dict(enumerate(given))
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name} must be a sequence of arrays, one per table, or a dict by table "
            f"number; got {type(given).__name__}"
        )
    for number in given:
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise TypeError(f"{name} must have table numbers as keys, got {number!r}")
    return {int(number): part for number, part in given.items()}


def _dtype_of(name: str, array: Any) -> np.dtype:
    if not isinstance(array, np.ndarray | jax.Array):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    return array.dtype
