"""The server's log: one line an event on stderr, `time level event key=value …`, with the request id on every line of a request."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import time

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

log = logging.getLogger("hls_foundry.serving")


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        line = f"{stamp} {record.levelname.lower()} {record.getMessage()}"
        if (current := request_id.get()) != "-":
            line += f" request={current}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure() -> None:
    """Send our log and uvicorn's warnings to stderr. HLS_LOG_LEVEL: DEBUG adds the pings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(os.environ.get("HLS_LOG_LEVEL", "INFO").upper())
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.handlers[:] = [handler]
    uvicorn.propagate = False
    uvicorn.setLevel(logging.WARNING)
