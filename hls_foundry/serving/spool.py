"""Bodies and S3 objects while they are worked on: in memory while small, else in a file that has no name and goes with its process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

IN_MEMORY_BYTES = 16 * 1024 * 1024


class Spool:
    """Bytes that were written once and are read by one request; a context manager."""

    def __init__(self, in_memory: int = IN_MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115  # closed by whom it is handed to
        self._in_memory = in_memory
        self.size = 0

    @property
    def on_disk(self) -> bool:
        """Whether the next write, or the last, goes to the disk and so takes a moment."""
        return self.size > self._in_memory

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.size += len(content)

    def start(self, size: int = 16) -> bytes:
        """The first bytes."""
        self._file.seek(0)
        return self._file.read(size)

    def content(self) -> bytes:
        """All of it, in memory."""
        self._file.seek(0)
        return self._file.read()

    def source(self) -> bytes | Path:
        """What a reader opens: the bytes, or the path by which this process reaches the nameless file until `close`."""
        if not self.on_disk:
            return self.content()
        self._file.flush()
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
