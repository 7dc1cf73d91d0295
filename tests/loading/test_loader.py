"""The loader: lengths, epochs, resuming, ranks, evaluation, placement and faults."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from respipe.backends.reference import decode_upright
from respipe.errors import CorruptImageError, StateMismatchError, StorageError
from respipe.loading.loader import Loader
from respipe.sampling import CenterCrop, RandomCrop
from respipe.schedules import TRD, Constant, RSNet, Schedule
from respipe.storage.fields import Column
from tests.loaders import SCHEDULE, Greedy, Mixed, flat, make
from tests.memory_dataset import MemoryDataset


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset([(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)], fractions=(0.5,))


def batches_of(loader: Loader, epochs: int) -> list[tuple[Any, ...]]:
    return [batch for epoch in range(epochs) for batch in flat(iter(loader))]


def test_batches_have_the_sizes_and_labels_of_the_plan(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        seen = set()
        for images, labels, spec in loader:
            (size,) = spec.step.sizes
            seen.add(size)
            assert images.shape == (4, 3, size, size)
            assert images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert labels.dtype == torch.int64
            assert labels.tolist() == dataset.labels[spec.indices].tolist()
        assert seen == {16, 32}


def test_size_batch_size_and_duplicates_may_change_at_every_step(dataset: MemoryDataset) -> None:
    with make(dataset, Mixed()) as loader:
        shapes = [
            [tuple(image.shape) for image in (images if isinstance(images, tuple) else (images,))]
            for images, _, _ in loader
        ]
        assert len(loader) == 4
    assert shapes == [[(4, 3, 32, 32)], [(16, 3, 16, 16)], [(4, 3, 24, 24), (4, 3, 16, 16)], [(12, 3, 32, 32)]]


def test_fields_are_given_by_name_and_sliced_with_the_batch(dataset: MemoryDataset) -> None:
    captions = [f"picture {index}" for index in range(21)]
    dataset.fields = {
        **dataset.fields,
        "caption": Column(kind="text", values=captions),
        "score": Column(kind="float", values=np.arange(21) / 3),
        "vector": Column(kind="vector", values=np.eye(21, 4, dtype=np.float32)),
    }
    with make(dataset, fields=("caption", "vector", "score", "label")) as loader:
        for images, fields, spec in loader:
            assert [*fields] == ["caption", "vector", "score", "label"]
            assert fields["caption"] == [captions[index] for index in spec.indices]
            assert (fields["score"].dtype, fields["vector"].dtype) == (torch.float32, torch.float32)
            assert torch.equal(fields["score"], torch.from_numpy(spec.indices / 3).float())
            assert torch.equal(fields["vector"], torch.eye(21, 4)[spec.indices])
            assert fields["label"].tolist() == dataset.labels[spec.indices].tolist()
            assert len(images) == 4
    with make(dataset, fields=("score",), mixup=0.2, with_spec=False) as loader:
        assert [*next(iter(loader))[1]] == ["score"]
    with pytest.raises(ValueError, match=r"`fields` must be names .*`caption`.*; got 'captions'"):
        make(dataset, fields=("captions",))
    with pytest.raises(TypeError, match="a sequence of names"):
        make(dataset, fields="caption")


def test_without_spec_a_batch_is_a_pair(dataset: MemoryDataset) -> None:
    with make(dataset, with_spec=False) as loader:
        images, labels = next(iter(loader))
        assert len(images) == len(labels) == 4


def test_an_epoch_uses_each_sample_at_most_once_and_epochs_differ(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        epochs = [list(itertools.chain(*(batch[5] for batch in flat(iter(loader))))) for _ in range(3)]
    for indices in epochs:
        assert len(indices) == len(set(indices)) == 20
    assert epochs[0] != epochs[1] != epochs[2]


def test_length_is_exact_before_iterating_and_for_any_epoch(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        assert len(loader) == loader.num_steps(0) == loader.num_steps(99) == 5
        assert len(list(loader)) == 5


@pytest.mark.parametrize("schedule", [SCHEDULE, Mixed()])
def test_threads_and_prefetching_do_not_change_a_pixel(dataset: MemoryDataset, schedule: Schedule) -> None:
    with (
        make(dataset, schedule, num_threads=1, num_prefetch=1) as one,
        make(dataset, schedule, num_threads=3, num_prefetch=5) as other,
        make(dataset, schedule, num_threads=2, prefetch_bytes=1) as third,
    ):
        assert batches_of(one, 2) == batches_of(other, 2) == batches_of(third, 2)


@pytest.mark.parametrize("schedule", [SCHEDULE, Mixed()])
def test_a_new_loader_resumes_exactly_after_every_step(dataset: MemoryDataset, schedule: Schedule) -> None:
    with make(dataset, schedule) as loader:
        states = [loader.state_dict()]
        batches = []
        for _ in range(2):
            for batch in loader:
                batches += flat(iter([batch]))
                states.append(loader.state_dict())
    for number, state in enumerate(states):
        assert len(json.dumps(state)) < 1024
        with make(dataset, schedule) as resumed:
            resumed.load_state_dict(json.loads(json.dumps(state)))
            tail: list[tuple[Any, ...]] = []
            for epoch in range(resumed.epoch, 2):
                resumed.set_epoch(epoch)
                tail += flat(iter(resumed))
            assert tail == batches[number:]


def test_state_counts_received_batches_not_prefetched_ones(dataset: MemoryDataset) -> None:
    with make(dataset, num_prefetch=4) as loader:
        batches = iter(loader)
        assert (loader.epoch, loader.step) == (0, 0)
        next(batches)
        next(batches)
        assert loader.state_dict()["step"] == loader.step == 2


def test_saving_while_iterating_disturbs_nothing(dataset: MemoryDataset) -> None:
    with make(dataset) as loader, make(dataset) as other:
        batches, steps = [], []
        for batch in loader:
            batches += flat(iter([batch]))
            steps.append([loader.state_dict() for _ in range(2)])
        places = [[(state["epoch"], state["step"]) for state in states] for states in steps]
        assert places == [[place] * 2 for place in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 0))]
        assert batches == flat(iter(other))


def test_a_trainer_that_names_the_epoch_after_resuming_stays_in_its_midst(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        expected = flat(iter(loader))
    with make(dataset) as resumed:
        state = resumed.state_dict() | {"step": 3}
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(0)
        assert resumed.state_dict() == state
        assert flat(iter(resumed)) == expected[3:]


def test_a_state_at_the_end_of_an_epoch_begins_the_next(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        loader.load_state_dict(loader.state_dict() | {"step": 5})
        assert (loader.epoch, loader.step) == (1, 0)


def test_a_state_of_another_run_is_compared_setting_by_setting(dataset: MemoryDataset) -> None:
    with (
        make(dataset) as loader,
        make(dataset, flip_probability=0.25) as other,
        pytest.raises(StateMismatchError, match=r"saved:  flip_probability=0\.5\n    loader: flip_prob\w+=0\.25\n"),
    ):
        other.load_state_dict(loader.state_dict())


def test_a_state_beyond_its_epoch_is_refused_and_changes_nothing(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(StateMismatchError, match="`step` must be at most 5, the steps of epoch 0; found 6"):
            loader.load_state_dict(loader.state_dict() | {"step": 6})
        assert loader.step == 1
        next(batches)
        assert loader.step == 2


def test_states_are_small_whatever_the_schedule(dataset: MemoryDataset) -> None:
    with make(dataset, TRD(32, 16, 0.5, milestones=range(1000))) as loader:
        assert len(json.dumps(loader.state_dict())) < 1024


def test_iterating_again_goes_on_with_the_next_epoch(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        list(loader)
        assert (loader.epoch, loader.step) == (1, 0)
        assert {batch[3] for batch in flat(iter(loader))} == {1}


def test_leaving_an_epoch_early_starts_it_anew(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        first = flat(itertools.islice(iter(loader), 2))
        assert flat(itertools.islice(iter(loader), 2)) == first
        assert loader.epoch == 0


def test_set_epoch_through_any_door_chooses_the_epoch(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        doors = [loader, loader.sampler, loader.batch_sampler, loader.batch_sampler.sampler]
        found = []
        for door in doors:
            door.set_epoch(5)
            found.append(flat(itertools.islice(iter(loader), 1)))
            loader.set_epoch(0)
        assert all(batch == found[0] for batch in found)
        assert found[0][0][3] == 5
        assert len(loader.batch_sampler) == len(loader) == 5


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("schedule", [SCHEDULE, Mixed()])
def test_ranks_together_see_the_single_process_batches(
    dataset: MemoryDataset, world_size: int, schedule: Schedule
) -> None:
    with make(dataset, schedule) as single:
        expected = flat(iter(single))
    parts = []
    for rank in range(world_size):
        with make(dataset, schedule, rank=rank, world_size=world_size) as loader:
            parts.append(flat(iter(loader)))
    for number, whole in enumerate(expected):
        shares = [part[number] for part in parts]
        assert list(itertools.chain(*(share[5] for share in shares))) == whole[5]
        assert len({len(share[5]) for share in shares}) == 1


def test_a_run_saved_on_four_ranks_continues_on_one(dataset: MemoryDataset) -> None:
    with make(dataset) as single:
        expected = flat(iter(single))
    with make(dataset, rank=3, world_size=4) as loader:
        batches = iter(loader)
        next(batches)
        next(batches)
        state = loader.state_dict()
    with make(dataset) as resumed:
        resumed.load_state_dict(state)
        assert flat(iter(resumed)) == expected[2:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_exactly_once(dataset: MemoryDataset, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        with make(dataset, Constant(16), batch_size=8, training=False, rank=rank, world_size=world_size) as loader:
            assert len(loader) == 3
            batches = list(loader)
            assert len(batches) == 3
            assert all(not spec.flips.any() for _, _, spec in batches)
            seen += [index for _, _, spec in batches for index in spec.indices.tolist()]
    assert sorted(seen) == list(range(21))


def test_evaluation_yields_the_same_pixels_every_epoch(dataset: MemoryDataset) -> None:
    with make(dataset, Constant(16), training=False) as loader:
        first, second = flat(iter(loader)), flat(iter(loader))
    assert [batch[0] for batch in first] == [batch[0] for batch in second]


def test_default_evaluation_matches_torchvision() -> None:
    # Sides that the resize of the shorter side to 64 leaves whole: torchvision rounds them, respipe does not.
    dataset = MemoryDataset([(96, 120), (144, 96)])
    with make(dataset, Constant(56), batch_size=2, training=False, dtype=torch.uint8, normalize=None) as loader:
        images, _, _ = next(iter(loader))
    transform = v2.Compose([v2.Resize(64), v2.CenterCrop(56)])
    for index in range(2):
        expected = np.asarray(transform(decode_upright(dataset, index)))
        found = images[index].permute(1, 2, 0).numpy()
        # At the edge of the crop torchvision's filter still sees the pixels beyond it.
        assert np.abs(found.astype(int) - expected)[1:-1, 1:-1].max() <= 1


def test_crop_of_the_users_choice_is_used(dataset: MemoryDataset) -> None:
    with make(dataset, Constant(16), crop=RandomCrop(size=8, padding=2)) as loader:
        _, _, spec = next(iter(loader))
        assert (spec.boxes[:, 2:] == 8).all()
    with make(dataset, Constant(16), crop=CenterCrop(1.0), flip_probability=0.0) as loader:
        _, _, spec = next(iter(loader))
        assert not spec.flips.any()


def test_mixup_from_torchvision_works_as_batch_transform(dataset: MemoryDataset) -> None:
    mix = v2.RandomChoice([v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    results = []
    for _ in range(2):
        with make(dataset, batch_transform=mix) as loader:
            batches = [(images.clone(), labels.clone()) for images, labels, _ in loader]
            assert batches[0][1].shape == (4, 3)
            results.append(batches)
    for (images, labels), (other_images, other_labels) in zip(*results, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mix", [v2.MixUp, v2.CutMix])
def test_mixing_one_of_several_sizes_is_refused(dataset: MemoryDataset, mix: type[v2.Transform]) -> None:
    schedule = RSNet((16, 12, 8))
    with (
        make(dataset, schedule, batch_transform=mix(num_classes=10)) as loader,
        pytest.raises(ValueError, match=r"must change the images of every size alike.*12, 8 px as they were"),
    ):
        next(iter(loader))
    with make(dataset, schedule, batch_transform=lambda images, labels: (images, labels)) as loader:
        images, *_ = next(iter(loader))
        assert [one.shape[-1] for one in images] == [16, 12, 8]


def test_uint8_pixels_equal_the_unnormalised_floats(dataset: MemoryDataset) -> None:
    with make(dataset, dtype=torch.uint8, normalize=None) as raw, make(dataset, normalize=None) as floats:
        for (pixels, _, _), (values, _, _) in zip(raw, floats, strict=True):
            assert pixels.dtype == torch.uint8
            torch.testing.assert_close(values, pixels / 255)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_on_a_gpu_equal_those_on_the_cpu(dataset: MemoryDataset, dtype: torch.dtype) -> None:
    with make(dataset, dtype=dtype) as host, make(dataset, dtype=dtype, device="cuda") as device:
        # The device's batches are kept, so that memory handed back too early would show.
        for (expected, labels, _), (images, device_labels, _) in zip(list(host), list(device), strict=True):
            assert images.device.type == "cuda"
            assert images.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(images.cpu(), expected)
            assert torch.equal(device_labels.cpu(), labels)


def test_damage_is_raised_or_quarantined(dataset: MemoryDataset) -> None:
    for level in range(2):
        dataset.damage(3, level=level)
    with make(dataset) as loader, pytest.raises(CorruptImageError, match="sample 3"):
        for _ in range(2):
            list(loader)
    with make(dataset, on_corrupt="quarantine") as loader:
        for _ in range(2):
            assert all(3 not in spec.indices for _, _, spec in loader)
        assert list(loader.quarantined) == [3]


def test_no_threads_are_left_behind(dataset: MemoryDataset) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        loader = make(dataset)
        for _ in loader:
            break
        loader.close()
        loader.close()
    assert set(threading.enumerate()) <= before
    assert not dataset.closed  # it is the caller's


def test_a_closed_loader_says_so(dataset: MemoryDataset) -> None:
    loader = make(dataset)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        iter(loader)


def test_an_error_in_the_users_loop_leaves_a_usable_loader(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        with pytest.raises(ZeroDivisionError):
            for _ in loader:
                raise ZeroDivisionError
        assert len(list(loader)) == 5


@pytest.mark.parametrize(
    "options",
    [{"seed": 8}, {"schedule": Constant(32)}, {"batch_size": 2}, {"crop": CenterCrop()}, {"flip_probability": 0.0}],
)
def test_state_of_another_run_is_refused(dataset: MemoryDataset, options: dict[str, Any]) -> None:
    with make(dataset) as loader:
        state = loader.state_dict()
    with make(dataset, **options) as other, pytest.raises(StateMismatchError, match=r"saved:.*\n.*loader:"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"batch_size": 22}, ValueError, "`batch_size`"),
        ({"batch_size": 5, "rank": 0, "world_size": 2}, ValueError, "multiple of the number of ranks.*Try 4 or 6"),
        ({"rank": 2, "world_size": 2}, ValueError, "`rank`"),
        ({"rank": 0}, ValueError, "together"),
        ({"rank": "0", "world_size": "2"}, TypeError, "`rank` must be an integer; got '0'"),
        ({"rank": 0.0, "world_size": 2}, TypeError, "`rank` must be an integer"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": True}, TypeError, "`seed` must be an integer; got True"),
        ({"num_threads": 10**6}, ValueError, "`num_threads` must be at most 1024"),
        ({"level_margin": None}, TypeError, "`level_margin` must be a number"),
        ({"level_margin": float("nan")}, ValueError, "`level_margin` must be at least 0"),
        ({"fields": True}, TypeError, "`fields` must be a sequence of names"),
        ({"weights": [1e308] * 21}, ValueError, "`weights` must be finite and at least 0, with a finite sum"),
        ({"schedule": TRD}, TypeError, "`schedule` must be a schedule"),
        ({"device": "cpu:1"}, ValueError, "torch finds 1 CPU devices"),
        ({"flip_probability": 1.5}, ValueError, "`flip_probability`"),
        ({"batch_size": 4.5}, TypeError, "`batch_size`"),
        ({"crop": 3}, TypeError, "`crop` must be a crop"),
        ({"batch_transform": 4}, TypeError, "`batch_transform` must be callable"),
        ({"device": "tpu"}, ValueError, "`device` must be a device that torch knows"),
        ({"device": "cuda:99"}, ValueError, "`device` must be on this machine"),
        ({"schedule": Greedy()}, ValueError, "`schedule` must use each sample at most once in an epoch"),
        ({"num_prefetch": 0}, ValueError, "`num_prefetch`"),
        ({"prefetch_bytes": 0}, ValueError, "`prefetch_bytes`"),
        ({"schedule": 224}, TypeError, "`schedule`"),
        ({"backend": "pillow"}, ValueError, "`backend`"),
        ({"on_corrupt": "ignore"}, ValueError, "`on_corrupt`"),
        ({"dtype": torch.int32}, TypeError, "`dtype`"),
        ({"training": False, "schedule": Mixed()}, ValueError, "`schedule`"),
    ],
)
def test_wrong_arguments_name_the_field(
    dataset: MemoryDataset, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(dataset, **options)


def test_missing_data_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="nowhere"):
        Loader("nowhere.beton", Constant(16), batch_size=2)
