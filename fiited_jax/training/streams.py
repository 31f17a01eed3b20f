"""The stream that the options name."""

from ..data import (
    AvazuStream,
    ClickStream,
    CriteoStream,
    DemoStream,
    MovieLensStream,
    TableStream,
)
from .shared_options import SharedOptions

__all__ = ["open_stream"]

_DEMO_EXAMPLES = 240_000
_READERS = {
    "avazu": AvazuStream,
    "criteo": CriteoStream,
    "movielens": MovieLensStream,
}


def open_stream(options: SharedOptions) -> ClickStream:
    """Open the data that the options name.

    Raises:
      DataError: if it cannot be read.
      ValueError: if `test_fraction` leaves a split of the demo empty.
    """
    test_fraction = options.split_fraction()
    if options.path is None:
        num_test = round(_DEMO_EXAMPLES * test_fraction)
        if not 0 < num_test < _DEMO_EXAMPLES:
            raise ValueError(
                f"test_fraction must leave each split of the demo's {_DEMO_EXAMPLES} "
                f"examples at least one, got {test_fraction}"
            )
        return DemoStream(_DEMO_EXAMPLES - num_test, num_test)
    if options.schema is not None:
        return TableStream(options.path, options.schema, test_fraction)
    return _READERS[options.data](options.path, test_fraction)
