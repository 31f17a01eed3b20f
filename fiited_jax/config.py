"""The static description of an embedding store."""

import dataclasses
import math
from collections.abc import Hashable
from typing import Any, Literal

import numpy as np

from . import scorers
from .budget import INDEX_LIMIT, Needs, Shares, fill
from .checks import check_choice, check_int, check_number, check_share
from .scorers import Scorer
from .sizes import SHORT_FRAMES, FrameKind, parse_bytes
from .sparse_optim import SlotSpec, SparseOptimizer

__all__ = ["EmbeddingConfig"]

_MOST_RANKED_CHUNKS = 32  # with ranking "chunks": an extent has a bit for each

_PIECE_BYTES = 512  # that a TPU copies of an array of key words, or more
_UTILITY_BYTES = 2
_VALUE_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Sizes and rules of a store; static under `jax.jit`, hashable, checked once.

    Attributes:
      embedding_dim: D, values per vector.
      chunk_dim: C, values per chunk; divides D. K = D / C chunks per vector.
      num_entries: M, keys that can be tracked; a multiple of `num_ways`, or with
        `table_sizes` their sum.
      num_frames: P, frames of the pool; frame 0 is the null frame.
      num_tables: tables that share the store.
      table_sizes: rows of each table, if ids are the numbers of rows as for `nn.Embed`,
        from 0 up. Then every row has an entry of its own, of which no key is stored:
        nothing is hashed, and no key is evicted for another one. Right where the rows
        are known and most are worth a value. `None`: ids are of any kind, and those
        worth most are tracked.
      table_dims: values per vector of each table, multiples of `chunk_dim` up to
        `embedding_dim`; vectors read zeros behind them, and what comes there as
        gradient is ignored. `None`: all have `embedding_dim`.
      table_floors: share of `target_frames` that the best chunks of each table get
        first, behind pinned keys, whatever those of other tables are worth; `None` for
        none. A floor keeps frames for the table's tracked keys; it does not keep the
        keys from being evicted. Floors above 0 cost `prune_step` a ranking each, and
        one more.
      value_dtype: how values are stored, `"float32"` or `"bfloat16"`: half the bytes,
        rounded stochastically by every update; see `fiited_jax.precision`. Optimizer
        state is not rounded.
      id_bits: 32 or 64; with 32, ids of `fj.Keys` with a high word are not admitted.
      num_ways: W, entries per bucket of the page table; of no meaning with
        `table_sizes`, as is `id_bits`.
      scorer: `score(stats) -> f32[N, U]`, see `fiited_jax.scorers`.
      ranking: `"lengths"`: an entry has one utility, and the priority of its chunk j
        is `utility / (j + 1) ** length_alpha`, so vectors are prefixes of their chunks;
        `"chunks"`: every chunk has a utility and is ranked by itself.
      length_alpha: how fast more length is worth less.
      utility_scale: what utilities are divided by before `prune_step` ranks them:
        `"none"`, or `"p95"`, the 95th percentile of those above 0 of their table, for
        tables whose scores differ in size. What is stored stays as it is: keys are
        evicted, and an admission filter guards, by utilities that are not divided.
      half_life: steps in which an untouched utility halves.
      fallback: what a chunk without a frame reads: `"zero"`; `"shared"`, a vector of
        the shared pool to which the key is hashed; or `"coarse"`, values of 4 bits that
        its entry holds, see `fiited_jax.coarse`. A chunk that gets a frame starts from
        what it has read there.
      num_shared: vectors of the shared pool, 0 without `"shared"`.
      coarse_dim: Q, coarse values of an entry, the first of its vector, a byte each
        with their optimizer state; a multiple of `chunk_dim`, 0 without `"coarse"`.
      coarse_step: what coarse values are multiples of, -7 to 7 times. About half of
        the largest step of an optimizer such as Adagrad, its learning rate, does.
      filter_slots: bytes of an admission filter, 0 for none. It remembers about as many
        keys; one that has not come before evicts only what by the last prune step is
        worth no more than its first chunks.
      initial_chunks: frames a new entry is given while free frames last.
      initial_scale: initial values are uniform in `[-initial_scale, initial_scale)`.
      headroom: share of the frames that `prune_step` leaves free for new entries.
      hysteresis: `prune_step` moves nothing unless at least this share of the frames in
        use would change owner, or as many are to be granted or idle.
      kernels: which implementation of `pallas_kernels` reads and steps frames, and
        finds keys: `"xla"`; `"triton"` on NVIDIA GPUs; `"mosaic_tpu"` on TPUs;
        `"sparsecore"` on those with SparseCores, where `"mosaic_tpu"` finds keys. They
        raise `NotImplementedError` for sizes and dtypes that they cannot do: on TPUs
        for optimizer state of other than 32 bits, but bfloat16 per value, on
        SparseCores for all that has not 32 bits, and on both, without `table_sizes`,
        where `num_ways` does not divide 128 or `num_entries` is no multiple of
        `entry_group`, mostly 512. `None` chooses.
      budgeted_slots: the optimizer state that `from_budget` counted; `None` for a
        config made by hand. The store refuses another one.

    Raises:
      ValueError, TypeError: naming the field, its value and what is allowed.

    >>> EmbeddingConfig(
    ...     embedding_dim=8, chunk_dim=4, num_entries=64, num_frames=100
    ... ).num_chunks
    2
    """

    embedding_dim: int
    chunk_dim: int
    num_entries: int
    num_frames: int
    num_tables: int = 1
    table_sizes: tuple[int, ...] | None = None
    table_dims: tuple[int, ...] | None = None
    table_floors: tuple[float, ...] | None = None
    value_dtype: Literal["float32", "bfloat16"] = "float32"
    num_ways: int = 32
    id_bits: int = 64
    scorer: Scorer = dataclasses.field(default_factory=scorers.fiited)
    ranking: Literal["lengths", "chunks"] = "lengths"
    length_alpha: float = 4.0
    utility_scale: Literal["none", "p95"] = "none"
    half_life: float = 2000.0
    fallback: Literal["zero", "shared", "coarse"] = "zero"
    num_shared: int = 0
    coarse_dim: int = 0
    coarse_step: float = 1 / 64
    filter_slots: int = 0
    initial_chunks: int = 1
    initial_scale: float = 0.01
    headroom: float = 0.02
    hysteresis: float = 0.01
    kernels: Literal["xla", "mosaic_tpu", "sparsecore", "triton"] | None = None
    budgeted_slots: tuple[SlotSpec, ...] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for name in (
            "embedding_dim", "chunk_dim", "num_ways", "num_entries", "num_tables"
        ):  # fmt: skip
            check_int(name, getattr(self, name), 1)
        check_int("num_frames", self.num_frames, 2)
        check_int("filter_slots", self.filter_slots, 0)
        check_int("initial_chunks", self.initial_chunks, 0)
        check_choice("id_bits", self.id_bits, (32, 64))
        check_choice("ranking", self.ranking, ("lengths", "chunks"))
        check_choice("utility_scale", self.utility_scale, ("none", "p95"))
        check_choice("fallback", self.fallback, ("zero", "shared", "coarse"))
        check_choice("value_dtype", self.value_dtype, _VALUE_DTYPES)
        if self.kernels is not None:
            allowed = ("xla", "mosaic_tpu", "sparsecore", "triton")
            check_choice("kernels", self.kernels, allowed)
        check_number("length_alpha", self.length_alpha, 0, 8)
        check_number("half_life", self.half_life, 1e-6, 1e30)
        check_number("initial_scale", self.initial_scale, 0, 1e30)
        check_number("coarse_step", self.coarse_step, 1e-30, 1e30)
        check_share("headroom", self.headroom)
        check_share("hysteresis", self.hysteresis)
        if not (callable(self.scorer) and isinstance(self.scorer, Hashable)):
            raise TypeError(
                f"scorer must be a hashable function of ScoreStats, got {self.scorer!r}"
            )
        self._check_table_rules()
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Check what sizes have to do with each other."""
        if self.embedding_dim % self.chunk_dim:
            raise ValueError(
                f"chunk_dim must divide embedding_dim={self.embedding_dim}, "
                f"got {self.chunk_dim}"
            )
        if self.table_sizes is not None:
            self._check_rows(self.table_sizes)
        elif self.num_entries % self.num_ways:
            raise ValueError(
                f"num_entries must be a multiple of num_ways={self.num_ways}, "
                f"got {self.num_entries}"
            )
        if self.initial_chunks > self.num_chunks:
            raise ValueError(
                f"initial_chunks must be at most embedding_dim / chunk_dim = "
                f"{self.num_chunks}, got {self.initial_chunks}"
            )
        if self.ranking == "chunks" and self.num_chunks > _MOST_RANKED_CHUNKS:
            raise ValueError(
                f"embedding_dim / chunk_dim must be at most {_MOST_RANKED_CHUNKS} with "
                f"ranking='chunks', got {self.num_chunks}"
            )
        for name, fallback in (("num_shared", "shared"), ("coarse_dim", "coarse")):
            value, is_read = getattr(self, name), self.fallback == fallback
            check_int(name, value, int(is_read))
            if value and not is_read:
                raise ValueError(
                    f"{name} must be 0 with fallback={self.fallback!r}, got {value}"
                )
        if self.coarse_dim % self.chunk_dim or self.coarse_dim > self.embedding_dim:
            raise ValueError(
                f"coarse_dim must be a multiple of chunk_dim={self.chunk_dim} up to "
                f"embedding_dim={self.embedding_dim}, got {self.coarse_dim}"
            )
        for name, count in (
            ("num_entries * num_chunks", self.num_entries * self.num_chunks),
            ("num_entries * coarse_dim", self.num_entries * self.coarse_dim),
            ("num_frames", self.num_frames),
            ("filter_slots", self.filter_slots),
            ("num_shared * num_chunks", self.num_shared * self.num_chunks),
        ):
            if count >= INDEX_LIMIT:
                raise ValueError(
                    f"{name} must be below 2^31 on one device, got {count}"
                )

    def _check_rows(self, table_sizes: tuple[int, ...]) -> None:
        """Check what numbered rows allow."""
        for table, size in enumerate(table_sizes):
            check_int(f"table_sizes[{table}]", size, 0)
        if not sum(table_sizes):
            raise ValueError(f"table_sizes must hold a row, got {table_sizes}")
        if self.num_entries != sum(table_sizes):
            raise ValueError(
                f"num_entries must be the sum of table_sizes, {sum(table_sizes)}; "
                f"got {self.num_entries}"
            )
        if self.filter_slots:
            raise ValueError(
                "filter_slots must be 0 with table_sizes, where no key takes the place "
                f"of another; got {self.filter_slots}"
            )

    def _check_table_rules(self) -> None:
        """Check what is given per table."""
        for name in ("table_sizes", "table_dims", "table_floors"):
            rules = getattr(self, name)
            if rules is None:
                continue
            if not isinstance(rules, tuple):
                raise TypeError(f"{name} must be a tuple or None, got {rules!r}")
            if len(rules) != self.num_tables:
                raise ValueError(
                    f"{name} must have num_tables={self.num_tables} elements, "
                    f"got {len(rules)}"
                )
        for table, dim in enumerate(self.table_dims or ()):
            name = f"table_dims[{table}]"
            check_int(name, dim, 1)
            if dim % self.chunk_dim or dim > self.embedding_dim:
                raise ValueError(
                    f"{name} must be a multiple of chunk_dim={self.chunk_dim} up to "
                    f"embedding_dim={self.embedding_dim}, got {dim}"
                )
        floors = self.table_floors or ()
        for table, floor in enumerate(floors):
            check_number(f"table_floors[{table}]", floor, 0, 1)
        if sum(floors) > 1 + 1e-9:  # shares of a third come to a little more
            raise ValueError(
                "table_floors must be shares that come to at most 1, come to "
                f"{sum(floors)}"
            )

    @property
    def num_chunks(self) -> int:
        """K, chunks per vector."""
        return self.embedding_dim // self.chunk_dim

    def dim_of(self, table: int) -> int:
        """Values per vector of a table."""
        return self.embedding_dim if self.table_dims is None else self.table_dims[table]

    @property
    def num_utilities(self) -> int:
        """U, utilities per entry."""
        return 1 if self.ranking == "lengths" else self.num_chunks

    @property
    def priority_weights(self) -> tuple[float, ...]:
        """What a utility counts for in each of the chunks that it stands for."""
        count = self.num_chunks // self.num_utilities
        return tuple((chunk + 1) ** -self.length_alpha for chunk in range(count))

    def _row_chunks(self) -> int:
        """Chunks of all rows of `table_sizes`."""
        sizes = self.table_sizes or ()
        return sum(
            size * self.dim_of(table) // self.chunk_dim
            for table, size in enumerate(sizes)
        )

    @property
    def floor_frames(self) -> tuple[int, ...]:
        """Frames that the best chunks of each table get first."""
        shares = self.table_floors or ()
        # A share of 0.29 of 100 frames is 29, not what float makes of it.
        return tuple(int(share * self.target_frames + 1e-6) for share in shares)

    @property
    def owner_dtype(self) -> np.dtype:
        """Holds a table number plus 1."""
        return np.min_scalar_type(self.num_tables)

    @property
    def extent_dtype(self) -> np.dtype:
        """Holds a number of chunks, or a bit for each."""
        if self.ranking == "lengths":
            return np.min_scalar_type(self.num_chunks)
        return np.min_scalar_type((1 << self.num_chunks) - 1)

    @property
    def start_dtype(self) -> np.dtype:
        """Holds a frame number."""
        return np.dtype(np.uint16 if self.num_frames <= SHORT_FRAMES else np.int32)

    @property
    def stored_dtype(self) -> np.dtype:
        """Holds a value, or its bits; see `fiited_jax.precision`."""
        return _VALUE_DTYPES[self.value_dtype]

    @property
    def line_group(self) -> int:
        """What the lines of a pool are a multiple of: TPUs copy short ones by twos.

        That may be the values, or the optimizer's state, of as many lines.
        """
        return 2 if self.kernels == "mosaic_tpu" else 1

    @property
    def key_kernels(self) -> Literal["xla", "mosaic_tpu", "triton"] | None:
        """Which implementation finds keys: SparseCores do not."""
        return "mosaic_tpu" if self.kernels == "sparsecore" else self.kernels

    @property
    def entry_group(self) -> int:
        """What the entries are a multiple of: TPUs copy what they hold by pieces."""
        if self.key_kernels != "mosaic_tpu":
            return self.num_ways
        # Of what is shortest most go into a piece; numbers of frames have 2 bytes up.
        shortest = min(self.owner_dtype.itemsize, self.extent_dtype.itemsize, 2)
        return math.lcm(self.num_ways, _PIECE_BYTES // shortest)

    @property
    def entry_bytes(self) -> int:
        """Bytes of an entry of the page table; see `state.PageTable`."""
        where = self.start_dtype.itemsize + self.extent_dtype.itemsize
        held = self.num_utilities * _UTILITY_BYTES + self.coarse_dim
        if self.table_sizes is not None:
            return where + held
        return self.id_bits // 8 + self.owner_dtype.itemsize + where + held

    @property
    def num_buckets(self) -> int:
        """Buckets of the page table; of no meaning with `table_sizes`."""
        return self.num_entries // self.num_ways

    @property
    def target_frames(self) -> int:
        """Frames in use after a prune step: all but the null frame and the headroom."""
        usable = self.num_frames - 1
        return max(usable - int(self.headroom * usable), 1)

    @classmethod
    def from_budget(
        cls,
        budget: int | str,
        *,
        embedding_dim: int,
        chunk_dim: int,
        optimizer: SparseOptimizer,
        frames_per_entry: float | None = None,
        num_ids: int | None = None,
        filter_share: float = 0.0,
        shared_share: float = 0.5,
        num_ways: int = 32,
        **fields: Any,
    ) -> "EmbeddingConfig":
        """Choose `num_entries` and `num_frames` so that the state fits `budget`.

        Args:
          budget: all-in bytes, an integer or text such as `"64MiB"`.
          embedding_dim: D, values per vector.
          chunk_dim: C, values per chunk.
          optimizer: whose state is counted, from `fj.sparse` and kin.
          frames_per_entry: about the mean frames per tracked key, 0.001 to K, while
            there are more keys than entries; `None` is one with `ranking="lengths"`,
            and half of the K chunks with `"chunks"`. Not with `table_sizes`.
          num_ids: keys that there can be, if that is known: no more entries are made
            than they need. Not with `table_sizes`.
          filter_share: share of the budget for an admission filter, see
            `filter_slots`; 0 for none.
          shared_share: share of the budget for the shared pool, with
            `fallback="shared"`.
          num_ways: W, entries per bucket.
          **fields: the other fields of the config. With `fallback="coarse"`,
            `initial_chunks` is 0 unless given: what is new reads its coarse values.

        Returns:
          A config whose state takes at most `budget` bytes, and at least 95 % of it
          from 1 MiB up, unless `num_ids` keys or all rows of `table_sizes` do not need
          so much, or what is left would not pay for longer starts of all rows.

        Raises:
          BudgetError: a ValueError, on a budget too small for one bucket, or all rows
            of `table_sizes`, and one frame, with one that is not; and on one that holds
            2^31 frames or more.
          TypeError: on an optimizer that is not a `SparseOptimizer`.

        >>> from fiited_jax import sparse_optim
        >>> config = EmbeddingConfig.from_budget(
        ...     "1MiB", embedding_dim=16, chunk_dim=4,
        ...     optimizer=sparse_optim.rowwise_adagrad(0.1))
        >>> config.num_entries, config.num_frames
        (30816, 30848)
        """
        num_bytes = parse_bytes(budget)
        if not isinstance(optimizer, SparseOptimizer):
            raise TypeError(
                "optimizer must be a SparseOptimizer, made by fj.sparse or "
                f"fj.rowwise_adagrad, got {optimizer!r}"
            )
        follow = {"num_entries", "num_frames", "filter_slots", "num_shared"}
        if given := fields.keys() & (follow | {"budgeted_slots"}):
            raise ValueError(
                f"{', '.join(sorted(given))} must not be given: they follow from budget"
            )
        check_share("filter_share", filter_share)
        check_share("shared_share", shared_share)
        is_shared = fields.get("fallback") == "shared"
        if is_shared and filter_share + shared_share >= 1:
            raise ValueError(
                "filter_share and shared_share must leave a part of the budget, got "
                f"{filter_share} and {shared_share}"
            )
        if fields.get("fallback") == "coarse":
            fields = {"initial_chunks": 0} | fields
        sizes = fields.get("table_sizes")
        if sizes is not None:
            for name, value in (
                ("frames_per_entry", frames_per_entry), ("num_ids", num_ids)
            ):  # fmt: skip
                if value is not None:
                    raise ValueError(
                        f"{name} must be None with table_sizes, got {value}"
                    )
            if filter_share:
                raise ValueError(
                    f"filter_share must be 0 with table_sizes, got {filter_share}"
                )
        # A minimal config checks the fields that the sizes depend on.
        probe = cls(
            embedding_dim=embedding_dim,
            chunk_dim=chunk_dim,
            num_entries=_least_entries(num_ways, sizes),
            num_frames=2,
            num_ways=num_ways,
            num_shared=int(is_shared),
            **fields,
        )
        specs = optimizer.slot_specs(chunk_dim)
        if num_ids is not None:
            check_int("num_ids", num_ids, 1)
        if frames_per_entry is None:  # many short vectors beat fewer long ones
            by_chunks = probe.ranking == "chunks"
            frames_per_entry = max(probe.num_chunks / 2, 1) if by_chunks else 1.0
        check_number("frames_per_entry", frames_per_entry, 1e-3, probe.num_chunks)
        longest = max(probe.table_dims or (embedding_dim,)) // chunk_dim
        needs = Needs(
            kind=FrameKind(
                chunk_dim, probe.stored_dtype.itemsize, specs, probe.line_group
            ),
            num_chunks=probe.num_chunks,
            most_chunks=longest / (1 - probe.headroom),
            entry_group=probe.entry_group,
            num_rows=None if sizes is None else probe.num_entries,
            most_frames=math.ceil(probe._row_chunks() / (1 - probe.headroom)) + 2,
            num_ids=num_ids,
            entry_bytes=lambda frames: (
                dataclasses.replace(probe, num_frames=frames).entry_bytes
            ),
        )
        shares = Shares(
            filter_share, shared_share if is_shared else None, frames_per_entry
        )
        filled = fill(num_bytes, needs, shares)
        return dataclasses.replace(probe, budgeted_slots=specs, **filled._asdict())


def _least_entries(num_ways: Any, table_sizes: Any) -> int:
    """Return entries that make a config, if it is one otherwise."""
    if isinstance(table_sizes, tuple) and all(isinstance(n, int) for n in table_sizes):
        return max(sum(table_sizes), 1)
    return num_ways if isinstance(num_ways, int) else 1
