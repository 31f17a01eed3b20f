"""`pep`: a full table learns which of its values it needs, and is trained again.

Every value has a learned threshold and what is read is how far it exceeds it. After the
search the values that are kept are fixed, start again from their initial values and are
trained as the full table is. Training takes more bytes than the full table does; the
budget is a share of the values, and only they are within it.

References:
  Liu et al., "Learnable embedding sizes for recommender systems", ICLR 2021,
  arXiv:2101.07577; a threshold for every value, as the authors' configurations have
  for Criteo, Avazu and MovieLens-1M.
  Deviations: thresholds start at -15 on all data, as theirs do on MovieLens-1M; on
  Criteo and Avazu theirs start at -150. Values and thresholds learn with the optimizer
  of the other methods instead of Adam; with plain SGD thresholds so low hardly move,
  and the search goes by magnitude. Its weight decay, which is what raises them, acts on
  those of the batch alone, and not on values. The search is as long as the training
  after it and at its end the values kept are those with the largest `|v| - sigmoid(s)`,
  as many as the budget's share; theirs are those above their thresholds when these
  first become fewer than that. Ids are not merged by frequency, and the quality of a
  search is not looked at.
"""

from flax import nnx

from ..checks import BudgetError
from ..memory import dense_bytes
from .base import Embed, Method, Request, required_budget
from .pep_embed import PepEmbed

__all__ = ["pep"]

_INITIAL_THRESHOLD = -15.0
_THRESHOLD_DECAY = 1e-5


def pep(request: Request) -> Method:
    """Build the table and its thresholds.

    Ids that the training split does not contain read zeros.

    Raises:
      ValueError: if the share of the values that the budget is does not reach one.
    """
    budget, width = required_budget(request), request.embedding_dim
    num_rows, optimizer = request.vocabulary.num_pairs, request.optimizer
    dense, num_values = dense_bytes(num_rows, width, optimizer), num_rows * width
    num_kept = min(num_values * budget // dense, num_values)
    if num_kept < 1:
        raise BudgetError(
            f"budget is too small for method pep: the share of one of {num_values} "
            f"values is {-(-dense // num_values)} bytes, got {budget}"
        )

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return PepEmbed(
            num_rows,
            width,
            optimizer,
            num_kept=num_kept,
            initial_scale=request.initial_scale,
            initial_threshold=_INITIAL_THRESHOLD,
            threshold_decay=_THRESHOLD_DECAY,
            rngs=rngs,
        )

    return Method(
        width,
        make_embed,
        request.vocabulary.rows,
        prunes=False,
        restart=PepEmbed.restart,
    )
