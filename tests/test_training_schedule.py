"""When the trainer prunes, by listing the steps."""

import pytest

from fiited_jax.training.schedule import is_prune_step

LISTED = {
    "no warm-up": (50, 0, [50, 100, 150, 200]),
    "every step": (1, 0, list(range(1, 201))),
    "eighths, quarters, halves, whole": (
        32,
        64,
        [4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192],
    ),
    "rounded down": (50, 100, [6, 12, 18, 24, 36, 48, 75, 100, 150, 200]),
    "no interval below 1": (2, 16, list(range(1, 17)) + list(range(18, 201, 2))),
    "half an interval": (80, 40, [10, 20, 40, 80, 160]),
    "less than half of one": (80, 39, [80, 160]),
    "longer than the run": (160, 1000, list(range(20, 201, 20))),
    "of one step": (8, 1, list(range(8, 201, 8))),
}


@pytest.mark.parametrize("name", LISTED)
def test_the_steps_that_prune(name):
    interval, warmup, steps = LISTED[name]
    got = [step for step in range(1, 201) if is_prune_step(step, interval, warmup)]
    assert got == steps


@pytest.mark.parametrize("interval", [1, 7, 8, 50, 64])
@pytest.mark.parametrize("warmup", [0, 1, 30, 100, 333])
def test_after_the_warm_up_all_is_as_without_one(interval, warmup):
    for step in range(warmup + 1, warmup + 200):
        assert is_prune_step(step, interval, warmup) == (step % interval == 0)
