"""NVIDIA's perf_analyzer, fetched from the package registry once and kept out of the repository; a certificate."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "perf_analyzer"
# The last wheel with a perf_analyzer that runs on glibc 2.36, and the CUDA library that it is linked with.
WHEELS = ("tritonclient==2.50.0", "nvidia-cuda-runtime-cu12==12.9.79")


def fetch() -> tuple[Path, Path]:
    """Paths of the program and of the folder of its CUDA library; skips the test where they cannot be had."""
    if not list(CACHE.glob("**/bin/perf_analyzer")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), *WHEELS]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("perf_analyzer cannot be fetched: pip download failed")
        for wheel in CACHE.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(CACHE)
            wheel.unlink()
    program, library = next(CACHE.glob("**/bin/perf_analyzer")), next(CACHE.glob("**/libcudart.so.12"))
    program.chmod(0o755)
    return program, library.parent


@pytest.fixture(scope="session")
def perf_analyzer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs perf_analyzer with the arguments given; skips where it cannot run."""
    program, libraries = fetch()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)

    if run("--version").returncode:
        pytest.skip(f"perf_analyzer does not run here: {run('--version').stderr.strip()}; on Debian it needs libb64-0d")
    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key
