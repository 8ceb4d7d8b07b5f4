"""The models that this server serves, by name and version: what the frontends ask.

Holds versions that run and the reasons of those that could not be read. Starts and stops nothing by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from efserve.errors import NotFound, Unavailable
from efserve.frontend.service import IndexEntry, Placement
from efserve.server.version import ServedVersion, VersionState


class Catalog:
    """Served versions and broken models; the `Service` of the frontends.

    `names` tells which models the repositories hold at this moment, served or not, and why they cannot be.
    """

    def __init__(self, names: Callable[[], Mapping[str, str]] = dict, *, strict: bool = True) -> None:
        """`names`: models of the repositories, and what speaks against each; `strict`: ready only when all are."""
        self._names = names
        self._strict = strict
        self._versions: dict[str, dict[int, ServedVersion]] = {}  # of each model, the latest first
        self._broken: dict[str, str] = {}  # models whose config or files are wrong -> reason
        self._leaving: dict[tuple[str, str], VersionState] = {}  # versions that are being unloaded, or have been
        self._live = True
        self._started = False

    def versions(self, name: str) -> list[ServedVersion]:
        """The versions of a model, the latest first; none where there is no such model."""
        return list(self._versions.get(name, {}).values())

    def replace(self, name: str, versions: Sequence[ServedVersion]) -> list[ServedVersion]:
        """From now on these versions are the model's, or none; the ones that were so far, for their owner to end."""
        before = self.versions(name)
        self._broken.pop(name, None)
        self._versions.pop(name, None)
        if versions:
            ordered = sorted(versions, key=lambda version: int(version.version), reverse=True)
            self._versions[name] = {int(version.version): version for version in ordered}
        for version in versions:
            self._leaving.pop((name, version.version), None)
        return before

    def set_leaving(self, version: ServedVersion, state: VersionState) -> None:
        """A version that no request finds any more is UNLOADING, or (UNAVAILABLE) its memory has been given back."""
        if int(version.version) not in self._versions.get(version.name, {}):
            self._leaving[version.name, version.version] = state

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
        versions = self._versions.get(name, {})
        has_left = any(name == left for left, _ in self._leaving)
        if not (versions or has_left or name in self._broken):
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if version and (versions or has_left):
            found = next((candidate for candidate in versions.values() if candidate.version == version), None)
            if found is None and (name, version) not in self._leaving:
                raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
            if found is None or found.state is not VersionState.READY:
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
        """Every model that was to be served is ready; where that is not asked for, each has started or failed."""
        if not (self._live and self._started):
            return False
        return not self._strict or (not self._broken and all(version.is_ready for version in self))

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
            names = self._names()
            served = self._versions.keys() | self._broken.keys()
            doubled = {name: reason for name, reason in names.items() if reason and name not in served}
            entries.extend(IndexEntry(name, "", unavailable, reason) for name, reason in doubled.items())
            for (name, number), state in self._leaving.items():
                if state is VersionState.UNLOADING:
                    entries.append(IndexEntry(name, number, state.value))
                elif name in names and name not in doubled:
                    entries.append(IndexEntry(name, number, state.value, "unloaded"))
            entries.extend(IndexEntry(name) for name in names.keys() - {entry.name for entry in entries})
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def placements(self) -> list[Placement]:
        """One entry per worker process."""
        return [placement for version in self for placement in version.placements()]

    def limited_placements(self) -> list[Placement]:
        """Those of versions of which an instance has a memory limit."""
        limited = (version for version in self if any(part.memory_limit_bytes for part in version.partitions))
        return [placement for version in limited for placement in version.placements()]
