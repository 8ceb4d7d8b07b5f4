"""Our own clients over HTTP and gRPC, plain and within TLS: the same commands, the same answers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_server import SHIPPED, RunningServer, serve

SEVEN = SHIPPED.parent / "examples" / "digits" / "seven.png"
QUICK = ("--concurrency", "2", "--duration", "0.3", "--warmup", "0.05", "--json", "-")


def efserve(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "efserve", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def plain() -> Iterator[RunningServer]:
    with serve("--model", "digits", repository=SHIPPED) as server:
        yield server


@pytest.fixture(scope="module")
def secure(certificate: tuple[Path, Path]) -> Iterator[RunningServer]:
    cert, key = certificate
    with serve("--model", "digits", "--tls-cert", cert, "--tls-key", key, repository=SHIPPED) as server:
        yield server


def urls(server: RunningServer, *, tls: bool) -> list[str]:
    return [server.url, f"{'grpcs' if tls else 'grpc'}://{server.grpc}"]


def check_bench(done: subprocess.CompletedProcess[str], url: str) -> None:
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["target"]["url"] == url
    (level,) = result["levels"]
    assert level["statistics"]["requests"] > 50
    assert not level["statistics"]["errors"]
    assert level["record"]["server"][0]["requests"] > 50  # the server's own statistics, over the same transport


def test_gRPC_without_TLS(plain: RunningServer, tmp_path: Path) -> None:
    url = urls(plain, tls=False)[1]
    check_bench(efserve(tmp_path, "bench", "--url", url, *QUICK), url)
    assert "seven.png" in efserve(tmp_path, "infer", "digits", SEVEN, "--url", url).stdout


@pytest.mark.parametrize("which", [0, 1])
def test_tls(secure: RunningServer, certificate: tuple[Path, Path], tmp_path: Path, which: int) -> None:
    url = urls(secure, tls=True)[which]
    trusting = ("--url", url, "--tls-ca", certificate[0])
    check_bench(efserve(tmp_path, "bench", *trusting, *QUICK), url)
    check_bench(efserve(tmp_path, "bench", *trusting, *QUICK, "--processes", "2"), url)
    answers = [efserve(tmp_path, "infer", "digits", SEVEN, *way, "--json") for way in (trusting, ("--url", url))]
    assert json.loads(answers[0].stdout)["rows"][0]["classes"][0]["index"] == 7
    assert answers[1].returncode == 1
    assert "certificate is not trusted: self-signed certificate; name its authority with --tls-ca" in answers[1].stderr
    careless = efserve(tmp_path, "infer", "digits", SEVEN, "--url", url, "--tls-insecure", "--json")
    assert careless.stdout == answers[0].stdout


def test_models_over_tls(secure: RunningServer, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    told = efserve(tmp_path, "models", "--url", secure.url, "--tls-ca", certificate[0])
    assert "digits" in told.stdout
    wrong = efserve(tmp_path, "models", "--url", secure.url, "--tls-ca", tmp_path / "none.pem")
    assert wrong.returncode == 2
    assert "none.pem cannot be used: [Errno 2] No such file or directory; expected certificates in PEM" in wrong.stderr


def test_the_embedded_server_over_gRPC(tmp_path: Path) -> None:
    done = efserve(tmp_path, "bench", "--model-repository", SHIPPED, "--protocol", "grpc", *QUICK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"]["url"].startswith("grpc://127.0.0.1:")


def test_http_and_gRPC_in_turns(plain: RunningServer, tmp_path: Path) -> None:
    targets = [f"{name}={url}" for name, url in zip(("http", "grpc"), urls(plain, tls=False), strict=True)]
    options = ("--rounds", "2", "--concurrency", "2", "--duration", "0.3", "--warmup", "0.05", "--json", "-")
    done = efserve(tmp_path, "compare", *targets, *options)
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["contenders"]] == ["http", "grpc"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--url", "grpc://h:1", "--protocol", "grpc"], "the scheme of --url says which"),
        (["--protocol", "grpc", "--tensor-format", "json"], "gRPC has no such form"),
        (["--url", "grpc://h:1", "--tensor-format", "json"], "gRPC has no such form"),
        (["--url", "grpc://h:1/path"], "URL 'grpc://h:1/path': expected grpc://HOST:PORT, and nothing after it"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = efserve(tmp_path, "bench", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_the_wrong_port(plain: RunningServer, tmp_path: Path) -> None:
    for url, text in (
        (f"grpc://{plain.address}", "does not speak HTTP/2 as it should; is it the gRPC port?"),
        (f"https://{plain.address}", "does it speak TLS?"),
    ):
        done = efserve(tmp_path, "bench", "--url", url)
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("efserve-*")}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tensors_in_shared_memory(protocol: str, tmp_path: Path) -> None:
    before = regions()
    options = ("--protocol", protocol, "--shared-memory", "system", "--batch", "3")
    done = efserve(tmp_path, "bench", "--model-repository", SHIPPED, *options, *QUICK)
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(done.stdout)["levels"]
    assert not level["statistics"]["errors"]
    assert level["record"]["server"][0]["inferences"] > 150
    assert regions() <= before


@pytest.mark.parametrize("which", [0, 1])
def test_a_server_that_takes_no_shared_memory(plain: RunningServer, tmp_path: Path, which: int) -> None:
    before = regions()
    url = urls(plain, tls=False)[which]
    done = efserve(tmp_path, "bench", "--url", url, "--shared-memory", "system", *QUICK)
    assert done.returncode == 1
    assert "--allow-client-shm" in done.stderr
    assert regions() <= before
