"""Where a server listens, from its URL, and how it is known when it speaks TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from efserve.errors import UsageError


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose certificates are believed: those of the system's authorities, or of `ca_file` (PEM), or anybody's."""

    ca_file: Path | None = None
    anybody: bool = False

    def context(self, protocol: str) -> ssl.SSLContext:
        """A client's side of TLS that speaks `protocol` (ALPN) inside; UsageError for a file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise UsageError(f"--tls-ca {self.ca_file} cannot be used: {exc}; expected certificates in PEM") from exc
        if self.anybody:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        return context


SYSTEM_TRUST = Trust()


class Endpoint:
    """A server over HTTP; `prefix` is the path in front of /v2, without a slash at its end."""

    def __init__(self, url: str, trust: Trust = SYSTEM_TRUST) -> None:
        """Raises UsageError unless the URL is `[http[s]://]host[:port][/path]`."""
        parts, port = _parsed(url if "://" in url else f"http://{url}", {"http": 80, "https": 443})
        self.host, self.port = str(parts.hostname), port
        self.prefix = parts.path.rstrip("/")
        self.authority = parts.netloc
        self.url = f"{parts.scheme}://{self.authority}{self.prefix}"
        self.tls = trust.context("http/1.1") if parts.scheme == "https" else None  # None: plain TCP


class GrpcEndpoint:
    """A server over gRPC."""

    def __init__(self, url: str, trust: Trust = SYSTEM_TRUST) -> None:
        """Raises UsageError unless the URL is `grpc[s]://host[:port]`."""
        parts, port = _parsed(url, {"grpc": 8001, "grpcs": 8001})
        if parts.path.strip("/"):
            raise UsageError(f"URL '{url}': expected {parts.scheme}://HOST:PORT, and nothing after it")
        self.host, self.port = str(parts.hostname), port
        self.authority = parts.netloc
        self.url = f"{parts.scheme}://{self.authority}"
        self.tls = trust.context("h2") if parts.scheme == "grpcs" else None  # None: plain TCP


def is_grpc(url: str) -> bool:
    """True for the URL of a server over gRPC."""
    return url.startswith(("grpc://", "grpcs://"))


def _parsed(url: str, schemes: dict[str, int]) -> tuple[SplitResult, int]:
    """The parts of a URL, and its port or that of its scheme."""
    expected = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
    if not all("!" <= letter <= "~" for letter in url):
        raise UsageError(f"URL '{url}': expected {expected} in ASCII; percent-encode spaces and other letters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"URL '{url}': {exc}; expected {expected}") from exc
    if parts.scheme not in schemes or not parts.hostname:
        raise UsageError(f"URL '{url}': expected {expected}; other schemes are not supported")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"URL '{url}': expected {expected}, without user, query or fragment")
    return parts, port or schemes[parts.scheme]


def reason_of(exc: OSError) -> str:
    """Why a connection could not be made, in the system's words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}; name its authority with --tls-ca"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed, {exc.reason or exc}; does it speak TLS?"
    if isinstance(exc, ConnectionRefusedError) or "refused" in str(exc).lower():
        return "connection refused"
    return exc.strerror or str(exc)
