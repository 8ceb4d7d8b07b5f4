"""Addresses and certificates as the command line gives them."""

from pathlib import Path

import pytest

from efserve.errors import UsageError
from efserve.server.listeners import TcpAddress, parse_address, tls_context


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("[::1]:0", TcpAddress("::1", 0)),
        ("localhost:65535", TcpAddress("localhost", 65535)),
        ("unix:run/v2", Path("run/v2")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:65536", "host:-1", "::1:80", "unix:"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_address(text)


def test_certificates(tmp_path: Path) -> None:
    assert tls_context(None, None) is None
    with pytest.raises(UsageError, match="go together"):
        tls_context(tmp_path / "cert", None)
    with pytest.raises(UsageError, match="cannot be used"):
        tls_context(tmp_path / "cert", tmp_path / "key")
