"""What one end sends: frames within the peer's windows and frame size, and what waits for them."""

from collections import deque
from collections.abc import Collection, Sequence

from efserve.codec.http2.frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    MAX_FRAME_SIZE,
    RST_STREAM,
    UINT32,
    header_frames,
)
from efserve.codec.http2.streams import Step, Stream
from efserve.inference import Buffer

SMALL_BYTES = 64 * 1024  # up to here, data are joined with their frame's head
DEFAULT_TABLE_BYTES = 4096
EMPTY_TABLE = b"\x20"  # HPACK: the dynamic table has no room


class Outflow:
    """Bytes on their way to the peer. `blocked` holds the streams with data that the windows do not let go yet."""

    __slots__ = ("blocked", "buffers", "frame_bytes", "stream_window", "table_update", "window")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.window = DEFAULT_WINDOW  # of the connection
        self.stream_window = DEFAULT_WINDOW  # of a new stream
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self.table_update = b""  # stands before the next header block
        self.blocked: dict[int, Stream] = {}

    def headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """A header block; trailers wait for the data before them."""
        if stream.queue:
            stream.trailers, stream.ends = block, end
            return
        if self.table_update:
            block, self.table_update = self.table_update + block, b""
        self.buffers.append(header_frames(stream.id, block, self.frame_bytes, end=end))
        if end:
            stream.move(Step.SEND_END)

    def data(self, stream: Stream, parts: Sequence[Buffer], *, end: bool) -> None:
        """A part of the body, as far as the windows go; the rest is queued."""
        size_bytes = sum(map(len, parts))
        stream.ends = end
        fits = not size_bytes or size_bytes <= min(self.window, stream.send_window, self.frame_bytes)
        if fits and not stream.queue:
            self._frame(stream, parts, size_bytes)
            if end:
                stream.move(Step.SEND_END)
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.extend([memoryview(part) for part in parts if len(part)])
        stream.queued_bytes += size_bytes
        self.blocked[stream.id] = stream
        while self._advance(stream):
            pass

    def answer(self, stream: Stream, head: bytes, message: Sequence[Buffer], trailers: bytes) -> bool:
        """A whole answer in one piece, where the windows let it go; else returns False, and nothing is sent."""
        size_bytes = sum(map(len, message))
        if (
            size_bytes > self.window
            or size_bytes > stream.send_window
            or size_bytes > self.frame_bytes
            or stream.queue
            or self.table_update
        ):
            return False
        self.window -= size_bytes
        stream.send_window -= size_bytes
        number = stream.id
        self.buffers += (
            HEAD.pack(len(head) << 8 | HEADERS, END_HEADERS, number),
            head,
            HEAD.pack(size_bytes << 8 | DATA, 0, number),
            *message,
            HEAD.pack(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, number),
            trailers,
        )
        stream.move(Step.SEND_END)
        return True

    def reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""
        self.buffers.append(HEAD.pack(4 << 8 | RST_STREAM, 0, stream_id) + UINT32.pack(code))

    def drop(self, stream: Stream) -> None:
        """What the stream still had to send will not be sent."""
        self.blocked.pop(stream.id, None)
        stream.queue = None
        stream.queued_bytes = 0

    def widen(self, stream: Stream | None, increment: int) -> bool:
        """The peer opens a stream's window, or the connection's; False when it becomes larger than allowed."""
        if stream is None:
            self.window += increment
            return self.window <= LARGEST_WINDOW
        stream.send_window += increment
        return stream.send_window <= LARGEST_WINDOW

    def set(self, key: int, value: int, streams: Collection[Stream]) -> bool:
        """Take one of the peer's settings; False when a window becomes larger than allowed."""
        if key == INITIAL_WINDOW_SIZE:
            more, self.stream_window = value - self.stream_window, value
            for stream in streams:
                stream.send_window += more
            return all(stream.send_window <= LARGEST_WINDOW for stream in streams)
        if key == MAX_FRAME_SIZE:
            self.frame_bytes = value
        elif key == HEADER_TABLE_SIZE and value < DEFAULT_TABLE_BYTES:
            self.table_update = EMPTY_TABLE  # a smaller table is to be confirmed; ours is empty anyway
        return True

    def pump(self) -> list[Stream]:
        """Send what the windows allow, a frame of each stream in turn; the streams whose queue is sent now."""
        before, moved = list(self.blocked.values()), True
        while moved and self.window > 0:
            moved = False
            for stream in list(self.blocked.values()):
                moved |= self._advance(stream)
        return [stream for stream in before if stream.id not in self.blocked]

    def _advance(self, stream: Stream) -> bool:
        """Send one frame of a queue; False when the windows are shut or nothing is left."""
        queue = stream.queue
        room = min(self.window, stream.send_window, self.frame_bytes)
        if not queue or room <= 0:
            return False
        part = memoryview(queue[0])
        if len(part) > room:
            queue[0], part = part[room:], part[:room]
        else:
            queue.popleft()
        stream.queued_bytes -= len(part)
        self._frame(stream, [part], len(part), whole=not queue)
        if not queue:
            del self.blocked[stream.id]
            if stream.trailers:
                block, stream.trailers = stream.trailers, b""
                self.headers(stream, block, end=stream.ends)
            elif stream.ends:
                stream.move(Step.SEND_END)
        return True

    def _frame(self, stream: Stream, parts: Sequence[Buffer], size_bytes: int, *, whole: bool = True) -> None:
        self.window -= size_bytes
        stream.send_window -= size_bytes
        flags = END_STREAM if stream.ends and whole and not stream.trailers else 0
        head = HEAD.pack(size_bytes << 8 | DATA, flags, stream.id)
        if size_bytes <= SMALL_BYTES:
            self.buffers.append(b"".join([head, *parts]))
        else:
            self.buffers += [head, *parts]
