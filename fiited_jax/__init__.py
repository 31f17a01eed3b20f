"""Embedding store for recommender models that prunes vectors while training."""

from . import scorers as scorers
from .admission import AdmitInfo as AdmitInfo
from .config import EmbeddingConfig as EmbeddingConfig
from .handle import Handle as Handle
from .keys import PADDING_KEY as PADDING_KEY
from .keys import Keys as Keys
from .keys import keys_from_int64 as keys_from_int64
from .memory import MemoryReport as MemoryReport
from .nn import linen as linen
from .nn import nnx as nnx
from .pooling import pool as pool
from .pruning import PruneInfo as PruneInfo
from .scorers import ScoreStats as ScoreStats
from .sparse_optim import SparseOptimizer as SparseOptimizer
from .sparse_optim import rowwise_adagrad as rowwise_adagrad
from .sparse_optim import sparse as sparse
from .state import EmbeddingState as EmbeddingState
from .store import EmbeddingStore as EmbeddingStore
from .store import predict_memory as predict_memory
from .update import ApplyInfo as ApplyInfo
from .vector_grads import clip_vector_grads as clip_vector_grads
from .vector_grads import vector_grad_norm as vector_grad_norm
from .version import __version__ as __version__
from .warm_start import FromDenseInfo as FromDenseInfo
from .warm_start import from_dense as from_dense

__all__ = [
    "PADDING_KEY",
    "AdmitInfo",
    "ApplyInfo",
    "EmbeddingConfig",
    "EmbeddingState",
    "EmbeddingStore",
    "FromDenseInfo",
    "Handle",
    "Keys",
    "MemoryReport",
    "PruneInfo",
    "ScoreStats",
    "SparseOptimizer",
    "clip_vector_grads",
    "from_dense",
    "keys_from_int64",
    "linen",
    "nnx",
    "pool",
    "predict_memory",
    "rowwise_adagrad",
    "scorers",
    "sparse",
    "vector_grad_norm",
]
