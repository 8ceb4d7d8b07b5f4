"""The models that this server serves, by name and version: what the frontends ask.

Holds versions that run and the reasons of those that could not be read. Starts and stops nothing by itself.
"""

from collections.abc import Iterator

from efserve.errors import NotFound, Unavailable
from efserve.frontend.service import IndexEntry, Placement
from efserve.server.version import ServedVersion, VersionState
from efserve.worker.handle import WorkerState


class Catalog:
    """Served versions and broken models; the `Service` of the frontends."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, ServedVersion]] = {}  # of each model, the latest first
        self._broken: dict[str, str] = {}  # models whose config or files are wrong -> reason
        self._live = True
        self._started = False

    def add(self, version: ServedVersion) -> None:
        """A version is going to be served."""
        versions = {**self._versions.get(version.name, {}), int(version.version): version}
        self._versions[version.name] = dict(sorted(versions.items(), reverse=True))

    def add_broken(self, name: str, reason: str) -> None:
        """A model cannot be served, for this reason."""
        self._broken[name] = reason

    def set_started(self) -> None:
        """Every version has started or failed."""
        self._started = True

    def set_stopping(self) -> None:
        """The server takes no new work."""
        self._live = False

    def __iter__(self) -> Iterator[ServedVersion]:
        return (version for versions in self._versions.values() for version in versions.values())

    def model(self, name: str, version: str) -> ServedVersion:
        """The version asked for, or with "" the latest that is ready; errors with the texts that clients know."""
        versions = self._versions.get(name)
        if versions is None:
            if name in self._broken:
                raise NotFound(f"Request for unknown model: '{name}' has no available versions")
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if version:
            found = next((candidate for candidate in versions.values() if candidate.version == version), None)
            if found is None:
                raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
            if found.state is not VersionState.READY:
                raise Unavailable(f"Request for unknown model: '{name}' version {version} is not at ready state")
            return found
        for candidate in versions.values():
            if candidate.state is VersionState.READY:
                return candidate
        raise NotFound(f"Request for unknown model: '{name}' has no available versions")

    def models(self) -> list[ServedVersion]:
        """All versions that are ready."""
        return [version for version in self if version.state is VersionState.READY]

    def live(self) -> bool:
        """The process answers."""
        return self._live

    def ready(self) -> bool:
        """Every model that was to be served is ready."""
        return self._live and self._started and not self._broken and all(version.is_ready for version in self)

    def index(self, only_ready: bool) -> list[IndexEntry]:
        """The repository index: an entry per version, and one per model that cannot be read."""
        entries = [
            IndexEntry(version.name, version.version, version.state.value, version.reason)
            for version in self
            if not only_ready or version.state is VersionState.READY
        ]
        if not only_ready:
            unavailable = VersionState.UNAVAILABLE.value
            entries.extend(IndexEntry(name, "", unavailable, reason) for name, reason in self._broken.items())
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def placements(self) -> list[Placement]:
        """One entry per worker process."""
        return [
            Placement(
                model=version.name,
                version=version.version,
                instance=number,
                pid=worker.pid or 0,
                state=worker.state.name,
                rss_bytes=worker.rss_bytes() if worker.state is WorkerState.READY else 0,
                cores=(),
            )
            for version in self
            for number, worker in version.workers.items()
        ]
