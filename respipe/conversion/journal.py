"""The journal of a conversion: which pages are safely on disk, so that a rerun goes on after the last of them.

One line of JSON per page behind its own CRC-32, each written and synced after the page itself. Whatever follows the
last line that is whole never happened. The open journal is also the lock that keeps a second conversion away.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any, Self

from respipe.errors import ConversionError
from respipe.storage.beton.pages import PageRecord

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

logger = logging.getLogger(__name__)

# What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_VERSION = 3


class Journal:
    """An open, locked journal.

    Args:
        path: the file; made where it is missing.
        identity: JSON values that say what is converted and how. A journal of another identity is emptied.
        num_levels: images per sample.

    Attributes:
        records: pages that are complete, in order.

    Raises:
        ConversionError: another process has it open.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, num_levels: int) -> None:
        self._path = path
        self._descriptor = _open_locked(path)
        try:
            self.records = self._read({"version": _VERSION, **identity}, num_levels)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _read(self, identity: dict[str, Any], num_levels: int) -> list[PageRecord]:
        lines = self._path.read_bytes().splitlines(keepends=True)
        values = [_decode(line) for line in lines]
        whole = values.index(None) if None in values else len(values)
        if whole and values[0] == identity:
            os.ftruncate(self._descriptor, sum(map(len, lines[:whole])))
            records = [PageRecord.from_dict(value, num_levels=num_levels) for value in values[1:whole] if value]
            if records:
                logger.info("%s: resuming after %d samples", self._path, records[-1].stop)
            return records
        if lines:
            logger.warning("%s: belongs to another source or other settings; starting again", self._path)
        os.ftruncate(self._descriptor, 0)
        self._append(identity)
        return []

    @property
    def num_done(self) -> int:
        """Samples that the complete pages account for."""
        return self.records[-1].stop if self.records else 0

    def append(self, record: PageRecord) -> None:
        """Note that a page is on disk. On return the note is, too."""
        self._append(record.to_dict())
        self.records.append(record)

    def rewind(self, num_records: int) -> None:
        """Forget the pages after the first ``num_records``."""
        del self.records[num_records:]
        lines = self._path.read_bytes().splitlines(keepends=True)
        os.ftruncate(self._descriptor, sum(map(len, lines[: 1 + num_records])))
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """Delete the file: the conversion is finished."""
        self._path.unlink()

    def _append(self, value: dict[str, Any]) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        while line:
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _decode(line: bytes) -> dict[str, Any] | None:
    """The value of a line, or None where it is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    return json.loads(text) if line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(text) else None


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file, where the system and the file system can.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    logger.warning(
        "%s cannot be locked on this file system: make sure that no other conversion writes to the same target", path
    )


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            # The conversion that held it may have finished and deleted it in between.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConversionError(f"{path} is in use: another conversion to the same target is running.") from None
        os.close(descriptor)
