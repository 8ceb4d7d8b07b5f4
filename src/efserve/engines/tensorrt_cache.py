"""Plans and timings that this machine has built, kept beside the model: found again, locked while one builds, sealed.

A plan is code that the GPU's library runs, so only one that this user has built is taken from here: each is sealed with
a secret of the user's. A plan from elsewhere is loaded when it is named, never because it lies about.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from efserve import files
from efserve.engines.tensorrt_plan import Build
from efserve.errors import LoadFailed

FOLDER = ".cache"  # of a version: hidden, so that what is kept there is no change of the model
_SECRET_BYTES = 32
_TELL_S = 10.0  # between two words about waiting


@dataclass(frozen=True, slots=True)
class PlanCache:
    """A folder of plans, and the secret that seals them."""

    folder: Path
    secret: bytes

    def plan_path(self, build: Build) -> Path:
        """Where the plan of a build is, or would be."""
        return self.folder / f"model.{build.key}.plan"

    def find(self, build: Build) -> bytes | None:
        """The plan of an equal build that was made here; None where there is none, or its seal is not ours."""
        path = self.plan_path(build)
        try:
            plan = path.read_bytes()
            seal = path.with_suffix(".seal").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return plan if hmac.compare_digest(seal, self._seal(build, plan)) else None

    def store(self, build: Build, plan: bytes) -> None:
        """Keep a plan; OSError where the folder cannot be written. Whoever finds the seal finds all of the plan."""
        path = self.plan_path(build)
        path.with_suffix(".seal").unlink(missing_ok=True)
        files.replace(path, plan)
        files.replace(path.with_suffix(".json"), build.record().encode())
        files.replace(path.with_suffix(".seal"), self._seal(build, plan).encode())

    def timings(self, build: Build) -> bytes:
        """What earlier builds on such a machine have measured of kernels; empty where nothing."""
        with suppress(OSError):
            return self._timings_path(build).read_bytes()
        return b""

    def store_timings(self, build: Build, timings: bytes) -> None:
        """Keep measurements for the next build."""
        files.replace(self._timings_path(build), timings)

    @contextmanager
    def building(self, build: Build, deadline_s: float, on_wait: Callable[[str], object]) -> Iterator[None]:
        """The right to build this plan: one process has it at a time, and it ends with the process that has it.

        Raises LoadFailed when another has had it for `deadline_s`; OSError where the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"model.{build.key}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, deadline_s, on_wait, path)
            yield
        finally:
            os.close(descriptor)

    def _timings_path(self, build: Build) -> Path:
        machine = hashlib.sha256(str(build.machine).encode()).hexdigest()[:16]
        return self.folder / f"timings.{machine}"

    def _seal(self, build: Build, plan: bytes) -> str:
        return hmac.new(self.secret, build.key.encode() + hashlib.sha256(plan).digest(), hashlib.sha256).hexdigest()


def _lock(descriptor: int, deadline_s: float, on_wait: Callable[[str], object], path: Path) -> None:
    """flock with a deadline: a thread waits for it; the kernel gives it to us when its owner is done or dead."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    done = threading.Event()

    def wait() -> None:
        with suppress(OSError):  # the descriptor is closed: nobody waits any more
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            done.set()

    threading.Thread(target=wait, name="plan-lock", daemon=True).start()
    waited_s = 0.0
    while not done.wait(min(_TELL_S, deadline_s - waited_s)):
        waited_s += _TELL_S
        if waited_s >= deadline_s:
            raise LoadFailed(f"another process has been building the same plan for {deadline_s:g} s; it holds {path}")
        on_wait(f"waits for another worker that builds the same TensorRT plan, {waited_s:.0f} s so far")


def read_secret(folder: Path) -> bytes:
    """The user's secret in this folder, made when there is none; a passing one where none can be kept."""
    path = folder / "plan-seal"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            beside = folder / f".plan-seal.{os.getpid()}"
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            with suppress(FileExistsError):
                path.hardlink_to(beside)  # the first one stays
            beside.unlink()
        secret = path.read_bytes()
        if len(secret) == _SECRET_BYTES:
            return secret
    return secrets.token_bytes(_SECRET_BYTES)
