"""Click streams: what a recommender model is trained and tested on."""

from .avazu import AvazuStream as AvazuStream
from .criteo import CriteoStream as CriteoStream
from .demo import DemoStream as DemoStream
from .movielens import MovieLensStream as MovieLensStream
from .planted import Change as Change
from .stream import Batch as Batch
from .stream import BayesReference as BayesReference
from .stream import ClickStream as ClickStream
from .stream import DataError as DataError
from .stream import Split as Split
from .stream import rebatch as rebatch
from .table import TableStream as TableStream
from .table import text_id as text_id
from .table_schema import TableSchema as TableSchema
from .validation import ValidationStream as ValidationStream
from .vocabulary import Vocabulary as Vocabulary

__all__ = [
    "AvazuStream",
    "Batch",
    "BayesReference",
    "Change",
    "ClickStream",
    "CriteoStream",
    "DataError",
    "DemoStream",
    "MovieLensStream",
    "Split",
    "TableSchema",
    "TableStream",
    "ValidationStream",
    "Vocabulary",
    "rebatch",
    "text_id",
]
