"""Where a loader stands: five small values, the same on every rank, and what trainers look for on a loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from respipe.checks import check_int
from respipe.errors import StateMismatchError

if TYPE_CHECKING:
    from respipe.loading.loader import Loader

VERSION = 1
MAX_EPOCH = 2**32  # far beyond any run, and within what every counter of it holds


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """The position after the last batch that the user received.

    Args:
        version: of this format.
        seed: of the loader.
        epoch: number of the epoch, from 0.
        step: batches of that epoch already received.
        fingerprint: schedule, batch size, crops and data, in words, so that a mismatch explains itself.
    """

    version: int = VERSION
    seed: int
    epoch: int
    step: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for any checkpoint format."""
        return asdict(self)

    @staticmethod
    def from_dict(state: Mapping[str, Any], *, seed: int, fingerprint: str) -> LoaderState:
        """Read a saved state and compare it with the loader that is to continue from it.

        Raises:
            StateMismatchError: it belongs to another format version, seed, schedule or dataset.
        """
        if not isinstance(cast(object, state), Mapping):
            raise TypeError(f"`state_dict` must be a mapping; got {state!r}. Pass what `Loader.state_dict()` returned.")
        names = {field.name for field in fields(LoaderState)}
        if set(state) != names:
            raise StateMismatchError(
                f"A loader state has the keys {sorted(names)}; found {sorted(state)}. "
                "Pass what `Loader.state_dict()` returned."
            )
        expected = {"version": VERSION, "seed": seed, "fingerprint": fingerprint}
        differing = [name for name, value in expected.items() if state[name] != value]
        if differing:
            sides = "\n".join(
                f"  {name}:\n    saved:  {_beside(state[name], expected[name])}\n"
                f"    loader: {_beside(expected[name], state[name])}"
                for name in differing
            )
            raise StateMismatchError(
                f"The saved state belongs to another run. They differ in\n{sides}\n"
                "Build the loader with the saved values to continue that run, or do not load the state to start anew."
            )
        try:  # checkpoint formats may return NumPy's integers, or tensors
            epoch, step = (check_int(name, state[name], least=0, most=MAX_EPOCH) for name in ("epoch", "step"))
        except (TypeError, ValueError) as error:
            raise StateMismatchError(f"The saved position is damaged: {error}") from error
        return LoaderState(seed=seed, epoch=epoch, step=step, fingerprint=fingerprint)

    def check_step(self, num_steps: int) -> None:
        """Compare the step with the number of those in the state's epoch. The last one plus one is the epoch's end.

        Raises:
            StateMismatchError: there are not so many.
        """
        if self.step > num_steps:
            raise StateMismatchError(
                f"`step` must be at most {num_steps}, the steps of epoch {self.epoch}; found {self.step}. The state "
                "was changed, or the schedule plans other steps than when it was saved although its `repr` is the same."
            )


def _beside(value: Any, other: Any) -> str:
    """What a value has that the other has not; of a fingerprint, the settings and digest of the data that differ."""
    if not isinstance(value, str) or not isinstance(other, str):
        return repr(value)
    others = other.split("; ")
    return "; ".join(part for part in value.split("; ") if part not in others) or "nothing more"


class SamplerView:
    """What trainers expect of a sampler: a length, ``set_epoch``, and the samples that this rank has of each batch.

    Args:
        loader: whose plan it shows.
        of_batches: whether its length counts batches, as a batch sampler's does, or the samples of this rank, rounded
            up: scripts take it that an evaluation leaves out what all ranks' lengths do not add up to.
    """

    def __init__(self, loader: Loader, *, of_batches: bool) -> None:
        self._loader = loader
        self._of_batches = of_batches

    @property
    def sampler(self) -> SamplerView:
        """The view that counts samples: some trainers look for ``batch_sampler.sampler``."""
        return SamplerView(self._loader, of_batches=False)

    @property
    def batch_size(self) -> int:
        """Samples that this rank has of a batch at the schedule's base size."""
        return self._loader.batch_size // self._loader.world_size

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples that this rank has of each batch of the current epoch."""
        return tuple(size // self._loader.world_size for size in self._loader.batch_sizes)

    @property
    def average_batch_size(self) -> float:
        """Mean of the samples that a rank has of a batch of the current epoch."""
        return self._loader.average_batch_size / self._loader.world_size

    @property
    def drop_last(self) -> bool:
        return self._loader.drop_last

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader) if self._of_batches else -(-sum(self._loader.batch_sizes) // self._loader.world_size)
