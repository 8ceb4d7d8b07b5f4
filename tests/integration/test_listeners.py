"""TLS, Unix sockets and several addresses, with clients of the standard library and with Triton's."""

import http.client
import json
import socket
import ssl
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from live_server import SHIPPED, serve


def image(rows: int) -> triton.InferInput:
    tensor = triton.InferInput("input", [rows, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 1, 8, 8), np.float32))
    return tensor


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serve("--model", "digits", "--tls-cert", cert, "--tls-key", key, repository=SHIPPED) as server:
        assert server.url.startswith("https://")
        host, _, port = server.url.removeprefix("https://").partition(":")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=20)
        for _ in range(2):
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().read() == b""
        body = b"x" * 1_000_000
        connection.request("POST", "/v2/models/digits/infer", body, {"Connection": "close"})
        answer = connection.getresponse()
        assert answer.status == 400
        assert "error" in json.loads(answer.read())
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            plain.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/")
        assert server.stop() == 0


def test_triton_s_client_over_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serve("--model", "digits", "--tls-cert", cert, "--tls-key", key, repository=SHIPPED) as server:
        address = server.url.removeprefix("https://")
        with triton.InferenceServerClient(address, ssl=True, ssl_options={"ca_certs": str(cert)}) as client:
            for rows in (1, 8):
                assert client.infer("digits", [image(rows)]).as_numpy("scores").shape == (rows, 10)


def test_triton_s_grpc_client_over_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serve("--model", "digits", "--tls-cert", cert, "--tls-key", key, repository=SHIPPED) as server:
        options = {"ssl": True, "root_certificates": str(cert)}
        with triton_grpc.InferenceServerClient(server.grpc, **options) as client:
            tensor = triton_grpc.InferInput("input", [8, 1, 8, 8], "FP32")
            tensor.set_data_from_numpy(np.ones((8, 1, 8, 8), np.float32))
            assert client.infer("digits", [tensor]).as_numpy("scores").shape == (8, 10)
            assert client.is_server_ready()
            with triton_grpc.InferenceServerClient(server.grpc) as plain, pytest.raises(InferenceServerException):
                plain.is_server_ready(client_timeout=2)
            assert server.stop() == 0


def test_several_addresses_and_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serve(
        "--model", "digits", "--listen", f"unix:{path}", "--listen", "127.0.0.1:0", repository=SHIPPED
    ) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"POST /v2/repository/models/digits/load HTTP/1.1\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 503 ")  # let in, though loading is not allowed in this mode
        assert server.get("/v2/health/live")[0] == 200
        assert server.stop() == 0
        assert not path.exists()
