"""One line per request on standard error, written in batches: ids, node, outcome, times; never its text."""

import sys
from typing import Any, TextIO

import msgspec

from ccr import log


class RequestLog:
    """Collects lines and writes them when told to.

    Args:
        enabled: whether to log requests at all.
        form: ``json`` or ``console``, as the rest of the log.
        stream: where to.
    """

    def __init__(self, *, enabled: bool, form: str, stream: TextIO | None = None) -> None:
        self.enabled = enabled
        self._as_json = form == "json"
        self._stream = stream or sys.stderr
        self._lines: list[dict[str, Any]] = []
        self._encode = msgspec.json.Encoder().encode
        self._log = log.get("request")

    def add(self, line: dict[str, Any]) -> None:
        """Note a request that ended."""
        if self.enabled:
            self._lines.append(line)

    def flush(self) -> None:
        """Write what was collected."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._as_json:
            self._stream.write(b"".join([self._encode(line) + b"\n" for line in lines]).decode())
            self._stream.flush()
            return
        for line in lines:
            event = line.pop("event")
            self._log.info(event, **line)
