"""Loader states: small, checked against the loader, and clear about what differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from respipe.errors import StateMismatchError
from respipe.loading.position import LoaderState

STATE = LoaderState(seed=3, epoch=2, step=17, fingerprint="TRD(224, 112, 0.5); train.beton")


def test_a_state_survives_the_round_trip() -> None:
    assert LoaderState.from_dict(STATE.to_dict(), seed=3, fingerprint=STATE.fingerprint) == STATE


@pytest.mark.parametrize(
    ("change", "saved", "loader"),
    [
        ({"seed": 4}, "4", "3"),
        ({"fingerprint": "Constant(224); train.beton"}, "Constant(224)", "TRD(224, 112, 0.5)"),
        ({"version": 99}, "99", "1"),
    ],
)
def test_a_mismatch_prints_both_sides_and_the_remedy(change: dict[str, object], saved: str, loader: str) -> None:
    with pytest.raises(StateMismatchError) as caught:
        LoaderState.from_dict(STATE.to_dict() | change, seed=3, fingerprint=STATE.fingerprint)
    message = str(caught.value)
    assert saved in message and loader in message and next(iter(change)) in message
    assert "Build the loader with the saved values" in message


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"epoch": "2"}, {"step": 1.5}, {"epoch": None}, {"step": True}, {"epoch": 2**70}]
)
def test_a_nonsensical_position_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(StateMismatchError, match=r"`(epoch|step)` must be"):
        LoaderState.from_dict(STATE.to_dict() | change, seed=3, fingerprint=STATE.fingerprint)


def test_integers_of_numpy_and_torch_are_positions() -> None:
    state = STATE.to_dict() | {"epoch": np.int64(STATE.epoch), "step": torch.tensor(STATE.step)}
    assert LoaderState.from_dict(state, seed=3, fingerprint=STATE.fingerprint) == STATE


@pytest.mark.parametrize("state", [None, 5])
def test_what_is_no_state_at_all_is_refused(state: Any) -> None:
    with pytest.raises(TypeError, match="`state_dict` must be a mapping"):
        LoaderState.from_dict(state, seed=3, fingerprint=STATE.fingerprint)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, STATE.to_dict() | {"extra": 1}])
def test_a_dict_of_other_keys_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(StateMismatchError, match="keys"):
        LoaderState.from_dict(state, seed=3, fingerprint=STATE.fingerprint)


def test_a_step_may_be_the_end_of_its_epoch_and_no_more() -> None:
    STATE.check_step(17)
    with pytest.raises(StateMismatchError, match="`step` must be at most 16, the steps of epoch 2; found 17"):
        STATE.check_step(16)
