"""Where the v2 port listens beside its first address, and with which certificate."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from efserve.errors import UsageError
from efserve.frontend.port import Port


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """HOST:PORT"""

    host: str
    port: int


def parse_address(text: str) -> TcpAddress | Path:
    """An address of --listen; a Path is that of a Unix socket. Raises UsageError."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Path(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and host[0] != "["):
        raise UsageError(f"--listen {text}: expected HOST:PORT, [IPV6]:PORT or unix:PATH")
    return TcpAddress(host.strip("[]"), int(port))


def tls_context(cert: Path | None, key: Path | None, protocols: tuple[str, ...] = ()) -> ssl.SSLContext | None:
    """The TLS settings for a certificate and its key, None where neither is given; UsageError where one is wrong.

    `protocols` are those that clients may ask for by name.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("--tls-cert and --tls-key go together: give both")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"the certificate {cert} with the key {key} cannot be used: {exc}") from exc
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def listen_also(http: Port, addresses: tuple[str, ...], tls: ssl.SSLContext | None) -> None:
    """Have the server listen on these addresses as well; UsageError for one that is wrong or cannot be had."""
    for text in addresses:
        address = parse_address(text)
        try:
            if isinstance(address, Path):
                await http.start_unix(address)
            else:
                await http.start(address.host, address.port, tls)
        except OSError as exc:
            raise UsageError(f"cannot listen on --listen {text}: {exc.strerror or exc}") from exc
