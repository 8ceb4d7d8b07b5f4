"""What a connection tells its owner."""

from typing import NamedTuple

from efserve.codec.http2.headers import Head
from efserve.codec.http2.streams import Stream
from efserve.inference import Body


class HeadReceived(NamedTuple):
    """A request's or response's head; with `ended` it has no body."""

    stream: Stream
    head: Head
    ended: bool


class DataReceived(NamedTuple):
    """A part of a body, valid until more is received; its size is to be given back by `Connection.give_back`."""

    stream: Stream
    data: Body
    ended: bool


class TrailersReceived(NamedTuple):
    """The end of a body, with header fields after it."""

    stream: Stream
    head: Head


class StreamEnded(NamedTuple):
    """The stream is gone before its time: reset by the peer, or by us because of what the peer sent."""

    stream: Stream
    code: int
    text: str


class QueueSent(NamedTuple):
    """What waited for the peer's window has been sent."""

    stream: Stream


class WentAway(NamedTuple):
    """The peer takes no streams beyond the last one."""

    last_stream_id: int
    code: int
    text: str


Event = HeadReceived | DataReceived | TrailersReceived | StreamEnded | QueueSent | WentAway
