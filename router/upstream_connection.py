"""One HTTP/1.1 connection to a node: a request out, an answer in, its framing taken at its word and no further."""

import asyncio
import select
from collections import deque
from collections.abc import Callable
from typing import Final, Self, cast

import httptools

from router.upstream import RawHeaders, UpstreamError

#: Most bytes of an answer that carry no body: its headers, with interim answers before them or trailers after it.
HEAD_BYTES: Final = 64 * 2**10
#: With more than this read and not yet taken, the node has to wait; one read comes on top, at most 256 KiB.
BUFFER_BYTES: Final = 256 * 2**10
#: A connection idle for longer is looked at before it is used again: a node may have closed it in the same moment.
LOOK_AFTER_S: Final = 1.0
_BODILESS: Final = (204, 304)


class _MalformedError(Exception):
    """What the parser lets pass and we do not."""


class Connection(asyncio.Protocol):
    """A connection, for one request after another.

    Args:
        on_free: called with it when an answer is done and another request may follow.
        on_lost: called with it when it is closed, by whomever.
    """

    __slots__ = (
        "_answer", "_bare_bytes", "_headers", "_held", "_is_paused", "_keeps_alive", "_on_free", "_on_lost", "_parser",
        "_parts", "_transport", "_waiter", "idle_since_s", "is_open", "was_used",
    )  # fmt: skip

    def __init__(
        self, on_free: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]
    ) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._held: tuple[bytes, ...] = ()
        self._answer: HttpAnswer | None = None
        self._headers: RawHeaders = []
        self._parts: list[bytes] = []
        self._bare_bytes = 0
        self._keeps_alive = False
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self.is_open = False
        self.was_used = False
        self.idle_since_s = 0.0

    async def ask(self, head: bytes, body: bytes, *, is_head: bool) -> "HttpAnswer":
        """Send a request and wait for the answer's headers; arguments as for :meth:`begin`.

        Raises:
            UpstreamError: if no answer came; the connection is closed then.
        """
        answer = self.begin(head, body, is_head=is_head)
        await answer.begun()
        return answer

    def begin(self, head: bytes, body: bytes, *, is_head: bool, is_held: bool = False) -> "HttpAnswer":
        """Send a request; its answer is empty yet.

        Args:
            head: everything before the body.
            body: written apart from the head, uncopied; empty where the head holds it.
            is_head: whether the method is HEAD, whose answers have no body whatever their headers say.
            is_held: whether it goes out at :meth:`flush` instead of at once.
        """
        self._answer = answer = HttpAnswer(self, is_head=is_head)
        self._headers = []
        self._bare_bytes = 0
        self._keeps_alive = False
        self._held = (head, body) if body else (head,)
        if not is_held:
            self.flush()
        return answer

    def flush(self) -> None:
        """Send what is held."""
        transport, held = self._transport, self._held
        self._held = ()
        if held and transport is not None and not transport.is_closing():
            # Nothing to drain: the body is in memory as a whole already, and who waits, waits for the answer.
            for part in held:
                transport.write(part)

    @property
    def was_silent(self) -> bool:
        """Whether not one byte came in answer to the last request."""
        return not self._bare_bytes

    def is_fit(self, now_s: float) -> bool:
        """Whether a request may be sent on it after idling; closes it if not."""
        transport = self._transport
        if not self.is_open or transport is None or transport.is_closing():
            return False
        if now_s - self.idle_since_s > LOOK_AFTER_S and _has_news(transport):
            self.abort()
        return self.is_open

    def release(self, answer: "HttpAnswer") -> None:
        """The answer is done with; keep the connection if it ended cleanly, else close it at once."""
        transport = self._transport
        self._answer = None
        if (
            transport is None
            or not (answer.is_whole and self._keeps_alive and self.is_open)
            or transport.get_write_buffer_size()  # answered before it had the whole request
        ):
            self.abort()
            return
        self.was_used = True
        self._on_free(self)

    def abort(self) -> None:
        """Close at once, whatever is under way; the node sees it."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    async def news(self) -> None:
        """Wait until more of the answer came, or it broke; cancelled, the connection is closed."""
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    def pause(self) -> None:
        """Let the node wait."""
        if not self._is_paused and self.is_open and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Let the node go on."""
        if self._is_paused:
            self._is_paused = False
            if self.is_open and self._transport is not None:
                self._transport.resume_reading()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer; when nothing was asked, or after its end, they end the connection."""
        answer = self._answer
        if answer is None or answer.is_whole or answer.broken:
            self.abort()
            return
        self._bare_bytes += len(data)
        parts: list[bytes] = []
        self._parts = parts
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broke(f"malformed answer: {error.__context__ or error}")
        if parts:
            self._bare_bytes = 0
            answer.take_in(parts[0] if len(parts) == 1 else b"".join(parts))
        elif self._bare_bytes > HEAD_BYTES and not answer.is_whole:
            self._broke(f"malformed answer: more than {HEAD_BYTES} bytes without a body")
        if answer.status:
            self._wake()

    def eof_received(self) -> None:
        """The node has no more to say; the transport is closed after this."""
        self._left(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._left(exc)
        self._on_lost(self)
        del self._parser  # it holds us as we hold it, and the collector comes by rarely

    # What the parser calls

    def on_message_begin(self) -> None:
        """First byte of an answer: one that follows a whole one, nobody asked for."""
        if self._answer is not None and self._answer.is_whole:
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The answer begins, unless it is an interim one."""
        answer, headers = self._answer, self._headers
        self._headers = []
        if answer is None or answer.status:
            return
        status: int = self._parser.get_status_code()
        if status < 200 or status > 599:
            if status == 101 or not 100 <= status <= 199:
                raise _MalformedError(f"status {status}")
            return
        if (
            self._bare_bytes > HEAD_BYTES
            and sum([len(name) + len(value) for name, value in headers]) > HEAD_BYTES
        ):
            raise _MalformedError(f"headers of more than {HEAD_BYTES} bytes")
        answer.begin(status, headers)

    def on_body(self, piece: bytes) -> None:
        """Bytes of the body, without framing."""
        answer = self._answer
        if answer is not None and not answer.is_whole:
            self._parts.append(piece)

    def on_message_complete(self) -> None:
        """The end of an answer, as its own framing has it."""
        answer = self._answer
        if answer is not None and answer.status and not answer.is_whole:
            answer.is_whole = True
            self._keeps_alive = self._parser.should_keep_alive()

    def _left(self, error: Exception | None) -> None:
        self.is_open = False
        answer = self._answer
        if answer is None or answer.is_whole or answer.broken:
            return
        if error is None and answer.ends_with_connection:
            answer.is_whole = True
        elif error is None:
            when = "in the middle of its answer" if answer.status else "before its answer"
            answer.broken = f"the connection was closed {when}"
        else:
            answer.broken = words(error)
        self._wake()

    def _broke(self, why: str) -> None:
        """What came is no answer; one that was whole before stays whole."""
        answer = self._answer
        if answer is not None and not answer.is_whole:
            answer.broken = why
        self.abort()
        self._wake()

    def _wake(self) -> None:
        waiter, answer = self._waiter, self._answer
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif answer is not None and answer.on_news is not None:
            answer.on_news()


class HttpAnswer:
    """See :class:`router.upstream.UpstreamAnswer`; its own iterator of chunks.

    Args:
        connection: what it comes over, until it is closed.
        is_head: whether HEAD was asked.
    """

    __slots__ = (
        "_buffered_bytes", "_connection", "_is_head", "_pieces", "broken", "content_length",
        "ends_with_connection", "headers", "is_whole", "on_news", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, *, is_head: bool) -> None:
        self._connection: Connection | None = connection
        self._is_head = is_head
        self._pieces: deque[bytes] = deque()
        self._buffered_bytes = 0
        self.status = 0
        self.headers: RawHeaders = []
        self.content_length: int | None = None
        self.ends_with_connection = False
        self.is_whole = False
        self.broken = ""
        self.on_news: Callable[[], None] | None = None

    def begin(self, status: int, headers: RawHeaders) -> None:
        """The headers are here; the parser refused lengths that are ambiguous or no number.

        Raises:
            _MalformedError: for a transfer coding other than ``chunked``, once.
        """
        coding: bytes | None = None
        for name, value in headers:
            if name == b"content-length":
                self.content_length = int(value)
            elif name == b"transfer-encoding":
                coding = value.strip().lower() if coding is None else b""
        if coding not in (None, b"chunked"):
            raise _MalformedError("a transfer coding that is not just chunked")
        self.status = status
        self.headers = headers
        if self._is_head:
            self.is_whole = (
                True  # the parser does not know: it waits for a body, and the connection is not kept
            )
        elif status in _BODILESS:
            self.content_length = None  # the length of what was not sent
        else:
            self.ends_with_connection = coding is None and self.content_length is None

    def take_in(self, piece: bytes) -> None:
        """Keep what one read brought until it is asked for."""
        self._pieces.append(piece)
        self._buffered_bytes += len(piece)
        if self._buffered_bytes > BUFFER_BYTES and not self.is_whole and self._connection is not None:
            self._connection.pause()

    async def begun(self) -> None:
        """Return when the headers are here.

        Raises:
            UpstreamError: if they will not come; the connection is closed then.
        """
        while not self.status and not self.broken and self._connection is not None:
            await self._connection.news()
        if not self.status:
            self.close()
            raise UpstreamError(self.broken)

    def send(self) -> None:
        """Send the request, if it was held."""
        if self._connection is not None:
            self._connection.flush()

    def whole(self) -> bytes:
        """The body of an answer that is whole."""
        pieces = self._take_all()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self) -> Self:
        """The body, in the pieces it arrived in: what one read of the connection brought is one piece."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.is_whole:
                raise StopAsyncIteration
            await self._news()
        piece = self._pieces.popleft()
        self._buffered_bytes -= len(piece)
        if not self._pieces and self._connection is not None:
            self._connection.resume()
        return piece

    async def read(self) -> bytes:
        """The rest of the body; without a turn of the loop if it is here."""
        gathered = self._take_all()
        while not self.is_whole:
            await self._news()
            gathered += self._take_all()
        return gathered[0] if len(gathered) == 1 else b"".join(gathered)

    def close(self) -> None:
        """Done; closing twice does no harm."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release(self)

    def _take_all(self) -> list[bytes]:
        pieces = list(self._pieces)
        self._pieces.clear()
        self._buffered_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return pieces

    async def _news(self) -> None:
        if self.broken:
            raise UpstreamError(self.broken)
        if self._connection is None:
            raise UpstreamError("the answer was closed before its end")
        await self._connection.news()


def words(error: BaseException) -> str:
    """An error in words, with its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _has_news(transport: asyncio.Transport) -> bool:
    """Whether the node sent something, or closed, that the loop has not come to yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
