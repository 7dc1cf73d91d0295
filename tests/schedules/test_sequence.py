from __future__ import annotations

from collections import Counter

import numpy as np

from respipe.schedules import Step
from respipe.schedules.sequence import Steps, tally

LARGE, SMALL = Step((64,), 8), Step((32,), 8)


def test_tally_counts_compact_steps_as_it_counts_a_list() -> None:
    steps = Steps((LARGE, SMALL, LARGE, Step((16,), 8)), np.array([0, 1, 1, 2, 0, 1]))
    assert tally(steps) == Counter(list(steps)) == {LARGE: 3, SMALL: 3}
    assert tally(list(steps)) == {LARGE: 3, SMALL: 3}


def test_steps_hold_each_distinct_step_once() -> None:
    steps = Steps((LARGE, SMALL), np.array([0, 1, 0]))
    assert steps[0] is steps[2] is LARGE
