"""Every error and warning respipe raises on purpose, so that callers can catch one kind at a time."""

from __future__ import annotations


class RespipeError(Exception):
    """Base of all errors below. Wrong arguments raise ``ValueError`` or ``TypeError`` instead."""


class StorageError(RespipeError):
    """A dataset cannot be opened: missing, truncated, of a foreign format, or with pointers outside its file."""


class CorruptImageError(RespipeError):
    """A stored image cannot be decoded, or its bytes differ from those that were written.

    Args:
        message: what happened, naming the file, the sample and where the sample came from.
        index: the sample's number in its dataset.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions between processes.
        return (_rebuild_corrupt_image_error, (str(self), self.index))


def _rebuild_corrupt_image_error(message: str, index: int) -> CorruptImageError:
    return CorruptImageError(message, index=index)


class MissingBackendError(RespipeError):
    """An optional dependency is not installed. The message ends with the command that installs it."""


class WorkerLostError(RespipeError):
    """A thread or process died, or made no progress within its time limit."""


class StateMismatchError(RespipeError):
    """A saved state belongs to another dataset, schedule, seed or format version."""


class ConversionError(RespipeError):
    """A conversion could not be completed. What was written so far is kept, so that a rerun resumes."""


class NoEffectWarning(UserWarning):
    """A request was carried out but changed nothing."""
