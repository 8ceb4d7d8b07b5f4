"""What one end of a connection allows the other."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may have or do. `resets` and `controls` count between two calls of `Connection.calm`."""

    streams: int = 1000
    stream_window: int = 256 * 1024
    connection_window: int = 16 * 2**20
    frame_bytes: int = 256 * 1024
    header_bytes: int = 32 * 1024  # of a header block as sent, and of its fields
    resets: int = 1000  # streams reset by the peer, or by us for its faults
    controls: int = 10_000  # frames that carry neither data nor heads


DEFAULT_LIMITS = Limits()
