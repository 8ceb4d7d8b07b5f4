"""The models of a running v2 server: what it serves, and loading and unloading on it."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from efserve.client.control import HttpAnswer, HttpClient
from efserve.client.endpoint import Trust
from efserve.client.v2 import model_path
from efserve.errors import RemoteError, UsageError
from efserve.frontend.service import Placement

Value = TypeVar("Value")
_NOT_ON_REQUEST = "explicit model load / unload is not allowed"  # Triton's words, and ours


@dataclass(frozen=True, slots=True)
class ModelsJob:
    """Which server, and how to be let in."""

    url: str = "http://127.0.0.1:8000"
    admin_token_file: Path | None = None
    timeout_s: float = 300.0
    tls_ca: Path | None = None
    tls_insecure: bool = False


class IndexLine(msgspec.Struct):
    """One entry of the repository index."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
    placements: list[Placement] = []  # of its instances; none where the server does not tell them


class ServerModels:
    """Asks one server. Every method raises RemoteError with the server's own words when it refuses."""

    def __init__(self, job: ModelsJob) -> None:
        """Raises UsageError for a URL that is not HTTP and a token that cannot be read."""
        self._http = HttpClient(job.url, job.timeout_s, Trust(job.tls_ca, anybody=job.tls_insecure))
        self._headers = {"Content-Type": "application/json"}
        if job.admin_token_file is not None:
            try:
                token = job.admin_token_file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise UsageError(f"--admin-token-file {job.admin_token_file} cannot be read: {exc}") from exc
            self._headers["Authorization"] = f"Bearer {token}"

    async def index(self) -> list[IndexLine]:
        """Every model and version that the server knows of."""
        lines = self._decode(await self._post("/v2/repository/index", {}), list[IndexLine])
        placements = await self._placements()
        for line in lines:
            line.placements = [p for p in placements if (p.model, p.version) == (line.name, line.version)]
        return lines

    async def _placements(self) -> list[Placement]:
        """Where instances run, which only efserve tells."""
        answer = await self._http.call("GET", "/v2/efserve/placements", headers=self._headers)
        return self._decode(answer, list[Placement]) if answer.status == 200 else []

    async def load(self, name: str, config: Path | None = None, files: Mapping[str, Path] | None = None) -> None:
        """Load or reload a model, with this config (JSON) and these files in place of the repository's, if given."""
        await self._post(_repository_path(name, "load"), {"parameters": _load_parameters(config, files or {})})

    async def unload(self, name: str) -> None:
        """Unload a model."""
        await self._post(_repository_path(name, "unload"), {})

    async def config(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's config, as completed by the server."""
        return self._decode(await self._get(f"{model_path(name, version)}/config"), dict[str, Any])

    async def statistics(self, name: str = "") -> list[dict[str, Any]]:
        """The statistics of each version of a model, or of all."""
        path = f"{model_path(name)}/stats" if name else "/v2/models/stats"
        found = self._decode(await self._get(path), dict[str, list[dict[str, Any]]])
        return found.get("model_stats", [])

    async def _get(self, path: str) -> HttpAnswer:
        return _checked(await self._http.call("GET", path, headers=self._headers))

    async def _post(self, path: str, value: object) -> HttpAnswer:
        return _checked(await self._http.call("POST", path, msgspec.json.encode(value), self._headers))

    def _decode(self, answer: HttpAnswer, kind: type[Value]) -> Value:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.DecodeError as exc:
            raise RemoteError(f"the server's answer is not what the v2 protocol says: {exc}") from exc


def _load_parameters(config: Path | None, files: Mapping[str, Path]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    try:
        if config is not None:
            parameters["config"] = config.read_text(encoding="utf-8")
        for place, path in files.items():
            parameters[f"file:{place}"] = b64encode(path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"a file to send cannot be read: {exc}") from exc
    return parameters


def _repository_path(name: str, action: str) -> str:
    return model_path(name).replace("/v2/models/", "/v2/repository/models/", 1) + f"/{action}"


def _checked(answer: HttpAnswer) -> HttpAnswer:
    if answer.status != 200:
        told = answer.error_text()
        next_step = "; start it with --model-control-mode explicit for that" if _NOT_ON_REQUEST in told else ""
        raise RemoteError(f"the server answered {answer.status}: {told}{next_step}", answer.status)
    return answer
