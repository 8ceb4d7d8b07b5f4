"""Our end of an HTTP/2 connection joined to the h2 library's without sockets; frames of peers of any kind."""

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived

from efserve.codec.http2 import events as ours
from efserve.codec.http2 import frames as h2
from efserve.codec.http2.connection import Connection
from efserve.codec.http2.headers import encode_headers
from efserve.codec.http2.limits import Limits

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
HEAD = encode_headers([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = encode_headers([(b"grpc-status", b"0")])
SETTINGS = h2.settings_frame({})
Frame = tuple[int, int, int, bytes]


class Pair:
    """Our server and an h2 client, joined in memory; the server answers each whole request with its own body."""

    def __init__(self, limits: Limits | None = None, *, chunk: int = 1 << 20) -> None:
        self.server = Connection(limits=limits or Limits())
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.client.initiate_connection()
        self.chunk = chunk
        self.bodies: dict[int, bytearray] = {}
        self.answers: dict[int, bytearray] = {}
        self.seen: list[object] = []

    def run(self, *, acknowledge: bool = True) -> None:
        """Carry bytes both ways until nobody has anything to say."""
        while True:
            up, down = self.client.data_to_send(), b"".join(self.server.take())
            if not (up or down):
                return
            for at in range(0, len(up), self.chunk):
                for told in self.server.receive(up[at : at + self.chunk]):
                    self.on_server(told)
            for at in range(0, len(down), self.chunk):
                for event in self.client.receive_data(down[at : at + self.chunk]):
                    self.seen.append(event)
                    if isinstance(event, DataReceived):
                        self.answers.setdefault(event.stream_id, bytearray()).extend(event.data)
                        if acknowledge and event.flow_controlled_length:
                            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def on_server(self, event: ours.Event) -> None:
        if isinstance(event, ours.HeadReceived):
            self.bodies[event.stream.id] = bytearray()
        elif isinstance(event, ours.DataReceived):
            self.bodies[event.stream.id] += event.data
            self.server.give_back(event.stream, len(event.data))
        ended = isinstance(event, ours.TrailersReceived) or getattr(event, "ended", False)
        if ended and isinstance(event, ours.HeadReceived | ours.DataReceived | ours.TrailersReceived):
            body = bytes(self.bodies[event.stream.id])
            self.server.send_answer(event.stream, HEAD, [body], TRAILERS)

    def ask(self, body: bytes, *, pad: int | None = None) -> int:
        """Send a whole request, as fast as the server's windows allow."""
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, REQUEST)
        rest = memoryview(body)
        while len(rest):
            room = min(self.client.local_flow_control_window(number), self.client.max_outbound_frame_size) - (
                pad + 1 if pad else 0
            )
            assert room > 0 or self.pending(), "the server's window stays shut"
            part = rest[: max(room, 0)]
            if len(part):
                self.client.send_data(number, bytes(part), pad_length=pad)
            rest = rest[len(part) :]
            self.run()
        self.client.end_stream(number)
        self.run()
        return number

    def pending(self) -> bool:
        self.run()
        return True


def raw_server(limits: Limits | None = None) -> Connection:
    """A server that has been introduced to its client."""
    server = Connection(limits=limits or Limits())
    assert not server.receive(h2.PREFACE + SETTINGS)
    server.take()
    return server


def frames_of(data: bytes) -> list[Frame]:
    """Type, flags, stream and payload of each frame."""
    found, at = [], 0
    while at < len(data):
        head, flags, stream_id = h2.HEAD.unpack_from(data, at)
        found.append((head & 255, flags, stream_id, data[at + 9 : at + 9 + (head >> 8)]))
        at += 9 + (head >> 8)
    return found


def sent(connection: Connection) -> list[Frame]:
    return frames_of(b"".join(connection.take()))


def headers(stream_id: int = 1, flags: int = h2.END_HEADERS, fields: list[tuple[bytes, bytes]] = REQUEST) -> bytes:
    return h2.frame(h2.HEADERS, flags, stream_id, encode_headers(fields))


def goaway_code(frames: list[Frame]) -> int | None:
    last = [payload for kind, _, _, payload in frames if kind == h2.GOAWAY]
    return int.from_bytes(last[-1][4:8], "big") if last else None


def reset_codes(frames: list[Frame]) -> dict[int, int]:
    return {number: int.from_bytes(data, "big") for kind, _, number, data in frames if kind == h2.RST_STREAM}
