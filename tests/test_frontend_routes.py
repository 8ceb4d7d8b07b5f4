"""Every route of the v2 port: its answer, and what is not allowed, not found or not offered."""

import gzip
import json
from typing import Any

import pytest

from efserve.frontend.connection import Connection, Hub, Limits
from efserve.frontend.heads import Heads
from efserve.frontend.routes import Routes
from fakes import FakeModel, FakeService, MemoryTransport, identity_config


def service() -> FakeService:
    return FakeService(
        FakeModel(identity_config()), FakeModel(identity_config(), version="2"), FakeModel(identity_config("a/b c"))
    )


def call(served: FakeService, line: str, body: bytes = b"", *headers: str) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer to one request."""
    hub = Hub(Heads(Routes(served, "triton", 10_000).resolve, 10_000), 10_000, Limits())
    transport = MemoryTransport(Connection(hub))
    head = "\r\n".join([f"{line} HTTP/1.1", f"Content-Length: {len(body)}", *headers, "", ""])
    transport.send(head.encode() + body)
    answer_head, _, answer = transport.taken().partition(b"\r\n\r\n")
    return int(answer_head[9:12]), answer_head, answer


def answer(line: str, body: bytes = b"", served: FakeService | None = None) -> tuple[int, Any]:
    """Status and JSON of the answer to one request."""
    status, _, data = call(served or service(), line, body)
    return status, json.loads(data) if data else None


def test_the_server() -> None:
    status, about = answer("GET /v2")
    assert (status, about["name"]) == (200, "triton")
    assert "binary_tensor_data" in about["extensions"]
    assert answer("GET /v2/") == answer("GET /v2?verbose=1") == (200, about)
    assert answer("GET http://somewhere:80/v2") == (200, about)


def test_health() -> None:
    served = service()
    assert answer("GET /v2/health/live", served=served) == (200, None)
    assert answer("GET /v2/health/ready", served=served) == (200, None)
    served.is_live = served.is_ready = False
    assert answer("GET /v2/health/live", served=served)[0] == 400
    assert answer("GET /v2/health/ready", served=served)[0] == 400


def test_a_models_metadata() -> None:
    tensor = {"datatype": "FP32", "shape": [-1, 16]}
    expected = {
        "name": "identity",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", **tensor}],
        "outputs": [{"name": "output", **tensor}],
    }
    assert answer("GET /v2/models/identity") == (200, expected)
    assert answer("GET /v2/models/identity/versions/1") == (200, expected)
    assert answer("GET /v2/models/a%2Fb%20c")[1]["name"] == "a/b c"


def test_a_models_readiness() -> None:
    served = service()
    assert answer("GET /v2/models/identity/ready", served=served) == (200, None)
    served.unready.add("identity")
    assert answer("GET /v2/models/identity/ready", served=served) == (400, {"error": "Model version not ready"})
    assert answer("GET /v2/models/identity/versions/1/ready", served=served)[0] == 400
    status, error = answer("GET /v2/models/none/ready")
    assert (status, error) == (404, {"error": "Request for unknown model: 'none' is not found"})
    assert answer("GET /v2/models/identity/versions/9")[0] == 404


def test_a_models_config() -> None:
    status, config = answer("GET /v2/models/identity/config")
    assert (status, config["max_batch_size"], config["input"][0]["dims"]) == (200, 8, [16])


@pytest.mark.parametrize(
    ("path", "versions"),
    [
        ("/v2/models/stats", ["1", "2", "1"]),
        ("/v2/models/identity/stats", ["1", "2"]),
        ("/v2/models/identity/versions/2/stats", ["2"]),
    ],
)
def test_statistics(path: str, versions: list[str]) -> None:
    status, stats = answer(f"GET {path}")
    assert (status, [entry["version"] for entry in stats["model_stats"]]) == (200, versions)
    assert stats["model_stats"][0]["inference_stats"]["queue"] == {"count": 0, "ns": 0}
    assert answer("GET /v2/models/none/stats") == (400, {"error": "requested model 'none' is not available"})
    missing = "requested model version is not available for model 'identity'"
    assert answer("GET /v2/models/identity/versions/7/stats") == (400, {"error": missing})


def test_the_repository_index() -> None:
    served = service()
    served.unready.add("a/b c")
    status, entries = answer("POST /v2/repository/index", served=served)
    assert status == 200
    assert entries[0] == {"name": "identity", "version": "1", "state": "READY"}
    assert entries[2]["reason"] == "made unready"
    assert len(answer("POST /v2/repository/index", b'{"ready": true}', served)[1]) == 2
    assert answer("POST /v2/repository/index", b'{"ready": 1}')[0] == 400


def test_placements_are_told() -> None:
    status, placements = answer("GET /v2/efserve/placements")
    assert status == 200
    assert placements[0]["cores"] == [0, 1]
    assert placements[0]["device"] == "cpu"


@pytest.mark.parametrize("action", ["load", "unload"])
def test_loading_is_refused_with_tritons_words(action: str) -> None:
    error = {"error": "explicit model load / unload is not allowed if polling is enabled"}
    assert answer(f"POST /v2/repository/models/identity/{action}") == (503, error)


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_off_unless_it_is_allowed(kind: str) -> None:
    base = f"/v2/{kind}sharedmemory"
    assert answer(f"GET {base}/status") == (200, [])
    assert answer(f"GET {base}/region/r/status")[0] == 404
    for path in (f"{base}/unregister", f"{base}/region/r/unregister", f"{base}/region/r/register"):
        status, error = answer(f"POST {path}", b"{}")
        assert status == 501
        assert "--allow-client-shm" in error["error"]


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/models/identity/trace/setting", "/v2/logging"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_offered_says_so(method: str, path: str) -> None:
    assert answer(f"{method} {path}")[0] == 501


def test_wrong_methods_and_paths() -> None:
    assert answer("POST /v2") == (405, {"error": "method POST is not allowed here; expected GET"})
    assert answer("GET /v2/models/identity/infer")[0] == 405
    assert answer("DELETE /v2/models/identity")[0] == 405
    for path in ("/", "/v3", "/v2/models", "/v2/models/identity/none", "/v2/models/M/x/y/z"):
        status, error = answer(f"GET {path}")
        assert (status, error["error"].startswith("no route '/")) == (404, True)


def test_head_has_the_head_only() -> None:
    status, head, body = call(service(), "HEAD /v2")
    assert (status, body) == (200, b"")
    assert b"Content-Length: 0" not in head
    assert call(service(), "HEAD /none")[::2] == (404, b"")


def test_small_answers_are_never_compressed() -> None:
    """Triton's asyncio client offers to take gzip and reads none."""
    _, head, body = call(service(), "GET /v2", b"", "Accept-Encoding: gzip")
    assert b"Content-Encoding" not in head
    assert json.loads(body)["name"] == "triton"


def test_compressed_requests_of_small_routes_are_read() -> None:
    packed = gzip.compress(b'{"ready": true}')
    assert call(service(), "POST /v2/repository/index", packed, "Content-Encoding: gzip")[0] == 200
    assert call(service(), "POST /v2/repository/index", b"x", "Content-Encoding: br")[0] == 501


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/v2/models/none/infer", 404, "Request for unknown model: 'none' is not found"),
        ("/v2/models/identity/versions/99/infer", 404, "Request for unknown model: 'identity' version 99 is not found"),
        ("/v2/models/identity/infer", 400, "failed to parse the request JSON"),
    ],
)
def test_inference_errors(path: str, status: int, error: str) -> None:
    got, body = answer(f"POST {path}", b"{")
    assert got == status
    assert error in body["error"]
