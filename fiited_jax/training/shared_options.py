"""The options that every training run shares, whatever is compared."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..checks import check_int
from ..config import EmbeddingConfig
from ..methods import STORE_OPTIONS
from ..scorers import SCORERS
from ..sparse_optim import rowwise_adagrad

__all__ = ["SharedOptions", "optional"]

# Of what stores read, a name and the schedule of the trainer.
_NOT_OF_STORE = {"scorer", "prune_interval", "prune_warmup", "page_table"}
_AMPLE = "1GiB"  # a budget for which vectors are not too long


def optional(metavar: str) -> Any:
    """Show an option without a default in the help as what it takes, not as None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class SharedOptions:
    """Data, model and store.

    Attributes:
      data: demo generates a click stream and needs no file; the others read --path.
      path: for criteo and avazu a file in the format of the Kaggle training set; for
        movielens a folder or file of MovieLens-1M; for table any csv or parquet file.
        Text may be gzip compressed.
      schema: for table, a TOML file that names columns, such as label = "clicked",
        ids = ["user", "item"], dense = ["price"], order_by = "hour"; with label_min = 4
        a label from 4 up is a click.
      embedding_dim: values per full vector.
      chunk_dim: values per chunk, the unit that is pruned.
      scorer: how a batch adds to utilities.
      ranking: lengths makes vectors longer or shorter; chunks ranks each chunk alone.
      length_alpha: how fast more length is worth less, with ranking lengths.
      optimizer: of the embeddings.
      dense_learning_rate: of the MLPs, which Adam trains.
      batch_size: examples per step.
      epochs: passes over the training split.
      prune_interval: steps between prune steps.
      prune_warmup: steps in which that interval grows to its length: an eighth of it in
        the first quarter of the warm-up, then a quarter, and half from its middle on.
      half_life: steps in which an untouched utility halves.
      frames_per_entry: frames of the pool per tracked key, while there are more keys
        than entries. By default one with ranking lengths, half of the chunks with
        ranking chunks.
      filter_share: share of the budget for an admission filter, which keeps ids that
        come for the first time from pushing out good ones; 0 for none.
      fallback: what ids read where they have no values: zero; shared, vectors that
        they share with others, in a part of the budget; coarse, values of 4 bits; auto
        takes coarse where the ids of the training split come rarely and page_table
        rows leaves each some, else zero.
      shared_share: that part, with fallback shared.
      value_dtype: how method fiited stores values; bfloat16 halves their bytes.
      page_table: of method fiited: hashed tracks the ids that are worth most, of any
        number; rows gives every id of the training split an entry, numbered as for the
        methods with a row per id, and takes all others of a table for one; auto takes
        rows where they leave a chunk for each.
      test_fraction: share of the data that is the test split: the last rows, with avazu
        the last days, with movielens random ratings. By default 0.1 for movielens,
        otherwise 0.2.
    """

    data: Literal["demo", "avazu", "criteo", "movielens", "table"] = "demo"
    path: Annotated[Path | None, optional("PATH")] = None
    schema: Annotated[Path | None, optional("PATH")] = None
    embedding_dim: int = 16
    chunk_dim: int = 1
    scorer: Literal["fiited", "frequency", "grad_norm", "saliency"] = "grad_norm"
    ranking: Literal["lengths", "chunks"] = "lengths"
    length_alpha: float = 4.0
    optimizer: Literal["adagrad", "rowwise_adagrad", "sgd"] = "adagrad"
    dense_learning_rate: float = 0.002
    batch_size: int = 256
    epochs: int = 1
    prune_interval: int = 50
    prune_warmup: int = 0
    half_life: float = 2000.0
    frames_per_entry: Annotated[float | None, optional("FLOAT")] = None
    filter_share: float = 0.0
    fallback: Literal["auto", "zero", "shared", "coarse"] = "auto"
    shared_share: float = 0.5
    value_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    page_table: Literal["auto", "hashed", "rows"] = "auto"
    test_fraction: Annotated[float | None, optional("FLOAT")] = None

    def __post_init__(self) -> None:
        """Check what does not depend on the data."""
        if (self.path is None) != (self.data == "demo"):
            raise ValueError(
                "path must be given with every data but demo, and not with it, got "
                f"path={self.path} with data={self.data}"
            )
        if (self.schema is None) != (self.data != "table"):
            raise ValueError(
                "schema must be given with data=table and only then, got "
                f"schema={self.schema} with data={self.data}"
            )
        for name in (
            "embedding_dim",
            "chunk_dim",
            "batch_size",
            "epochs",
            "prune_interval",
        ):
            check_int(name, getattr(self, name), 1)
        check_int("prune_warmup", self.prune_warmup, 0)
        for name in ("dense_learning_rate", "half_life"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.split_fraction() < 1:
            raise ValueError(
                f"test_fraction must be between 0 and 1, got {self.test_fraction}"
            )
        if self.embedding_dim % self.chunk_dim:
            raise ValueError(
                f"chunk_dim must divide embedding_dim={self.embedding_dim}, "
                f"got {self.chunk_dim}"
            )
        for name in ("frames_per_entry", "filter_share"):
            if self.page_table == "rows" and getattr(self, name):
                raise ValueError(
                    f"{name} must not be given with page_table=rows, where every id "
                    f"has an entry; got {getattr(self, name)}"
                )
        self._check_store()

    def _check_store(self) -> None:
        """Let the store refuse what it cannot do, whatever the budget."""
        names = {"embedding_dim", *STORE_OPTIONS} - _NOT_OF_STORE
        fields = {name: getattr(self, name) for name in names}
        if self.fallback == "auto":
            fields["fallback"] = "zero"
        if self.fallback == "coarse":
            fields["coarse_dim"] = self.embedding_dim
        EmbeddingConfig.from_budget(
            _AMPLE,
            optimizer=rowwise_adagrad(1.0),
            scorer=SCORERS[self.scorer](),
            **fields,
        )

    def split_fraction(self) -> float:
        """Return the share of the data that is the test split."""
        if self.test_fraction is None:
            return 0.1 if self.data == "movielens" else 0.2
        return self.test_fraction
