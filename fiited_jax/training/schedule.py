"""When to prune."""

__all__ = ["is_prune_step"]

# The ramp: this many shorter intervals, each half of the next.
_NUM_SHORTER = 3


def is_prune_step(step: int, interval: int, warmup: int = 0) -> bool:
    """Tell whether a prune step follows a train step.

    Prune steps come at multiples of the interval. During a warm-up the interval is
    shorter, because an untrained ranking changes fast: an eighth of the given one in
    the first quarter of the warm-up, a quarter of it until the half, half of it until
    the end; rounded down, at least 1. A warm-up of less than half the interval may end
    before its first prune step.

    Args:
      step: train steps done, from 1.
      interval: steps between prune steps after the warm-up, at least 1.
      warmup: steps that the warm-up takes.

    >>> [step for step in range(1, 300) if is_prune_step(step, 80, warmup=160)]
    [10, 20, 30, 40, 60, 80, 120, 160, 240]
    """
    for halvings in range(_NUM_SHORTER, 0, -1):
        if step * 2 ** (halvings - 1) <= warmup:
            return step % max(interval >> halvings, 1) == 0
    return step % interval == 0
