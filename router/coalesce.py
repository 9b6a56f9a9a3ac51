"""One system call per answer: what is written within one turn of the loop goes out together.

uvicorn writes the head of an answer and its body separately; on loopback each write costs more than
choosing the node does. The transport given to it here collects, and writes when the turn ends.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Coalescing(asyncio.Transport):
    """A transport that writes once per turn of the loop.

    Args:
        transport: the real one; whatever is not about writing is its business.
        loop: whose turns count.
    """

    __slots__ = ("_call_soon", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._parts: list[bytes] = []

    def write(self, data: Any) -> None:
        """Write at the end of this turn."""
        if not self._parts:
            self._call_soon(self.flush)
        self._parts.append(data)

    def close(self) -> None:
        """Write what is waiting, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what is waiting is dropped."""
        self._parts.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether the connection is closing."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the real transport."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """As the real transport."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As the real transport."""
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() + sum(len(part) for part in self._parts)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As the real transport."""
        self._transport.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As the real transport."""
        self._transport.set_protocol(protocol)

    def flush(self) -> None:
        """Write what is waiting."""
        parts, self._parts = self._parts, []
        if not parts or self._transport.is_closing():
            return
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)


class CoalescingProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a :class:`Coalescing` transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, over the transport that writes once per turn."""
        self.raw_transport = transport
        super().connection_made(Coalescing(transport, self.loop))
