"""Which models are served: those of the start, and what is loaded, unloaded or polled while the server runs.

A load starts new workers beside the old ones and switches when they are ready; the old ones answer what they have.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakValueDictionary

from efserve.devices.cpu import available_cores
from efserve.errors import EfserveError, InvalidRequest, LoadFailed, Unavailable, UsageError
from efserve.frontend.service import LoadOverrides
from efserve.planning.plan import read_plan
from efserve.repository import DOUBLED, ModelFolder, fingerprint, model_folders, model_places, read_labels, scan
from efserve.room import room_here
from efserve.server.allotment import Allotment, Allotted, check_names
from efserve.server.catalog import Catalog
from efserve.server.memory_watch import MemoryWatch
from efserve.server.options import ServeConfig
from efserve.server.overrides import check_files, read_overridden, write_files
from efserve.server.shared import Shared
from efserve.server.version import ServedVersion, VersionState

log = logging.getLogger(__name__)

_NO_OVERRIDES = LoadOverrides()
_ALONE_S = 2.0  # for which a load waits that nothing of what was replaced before is left


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is ready to be started."""

    folder: ModelFolder
    place: "TemporaryDirectory[str] | None" = None  # its files, where they came with the request
    config_json: str = ""  # its config, where that came with a request
    seen: object = None  # fingerprint of its files, where they are the repository's


def repository_names(options: ServeConfig) -> dict[str, str]:
    """Models that the repositories hold now and that may be served, or why not; none where they cannot be read."""
    try:
        places = model_places(options.model_repository)
    except (EfserveError, OSError):
        return {}
    wanted = options.model or places
    return {name: DOUBLED if len(paths) > 1 else "" for name, paths in places.items() if name in wanted}


class RepositoryControl:
    """Starts, replaces and ends the versions in a catalog; one change of a model at a time."""

    def __init__(self, catalog: Catalog, options: ServeConfig, shared: Shared) -> None:
        self._catalog = catalog
        self._shared = shared
        self._options = options
        self.allotment = Allotment(options, room_here)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # while somebody uses them
        self._places: dict[str, TemporaryDirectory[str]] = {}  # of models whose files came with a request
        self._seen: dict[str, object] = {}  # fingerprints of what was last loaded or tried, in mode poll
        self._overridden: dict[str, tuple[str, object]] = {}  # configs that came with a request, fingerprints of files
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: WeakValueDictionary[str, asyncio.Task[None]] = WeakValueDictionary()  # until they are done
        self._starts = asyncio.Semaphore(max(2, len(available_cores())))

    # The start

    def find(self) -> None:
        """Fills the catalog with the models of the start.

        Raises UsageError for options that contradict each other and folders that are none, NotFound for unknown names.
        """
        options = self._options
        explicit = options.model_control_mode == "explicit"
        check_names(options, [name for name in model_places(options.model_repository) if self._may_serve(name)])
        if options.load_model and not explicit:
            raise UsageError("--load-model needs --model-control-mode explicit")
        if "*" in options.load_model and len(options.load_model) > 1:
            raise UsageError("--load-model '*' loads every model and goes with no other --load-model")
        wanted = options.model
        if options.plan is not None:
            _check_plan_alone(options)
            wanted = tuple(demand.model for demand in read_plan(options.plan).demands)
        if explicit and "*" not in options.load_model:
            if not options.load_model:
                model_folders(options.model_repository)  # raises for folders that are none
                self.allotment.arrange(())
                return
            wanted = options.load_model
        found = scan(options.model_repository, wanted)
        errors = found.errors | self.allotment.arrange(found.models)
        for name, error in errors.items():
            self._catalog.add_broken(name, str(error))
        for folder in found.models:
            allotted = self.allotment.held(folder.name)
            if folder.name in errors or allotted is None:
                continue
            try:
                self._catalog.replace(folder.name, self._versions(folder, allotted))
            except EfserveError as exc:
                self._catalog.add_broken(folder.name, str(exc))

    async def start(self) -> None:
        """Starts every version in the catalog, as many at a time as there are cores to load on."""
        await self._start(list(self._catalog))
        self._catalog.set_started()
        self._keep(MemoryWatch(self._catalog.limited_placements).run())
        if self._options.model_control_mode == "poll":
            self._seen = await asyncio.to_thread(self._look)
            self._keep(self._poll_for_ever())

    async def stop(self) -> None:
        """Ends what is under way; the versions in the catalog are not touched."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for place in self._places.values():
            place.cleanup()

    # On request

    async def load(self, name: str, overrides: LoadOverrides = _NO_OVERRIDES) -> None:
        """Serves the model as the repository or the request has it, instead of what was served under its name.

        Returns when the new workers take the requests. Raises LoadFailed or InvalidRequest; then all is as before.
        """
        self._check_explicit()
        if not name.strip():
            raise InvalidRequest("Model name cannot be empty. Please enter a valid name to deploy.")
        if name.strip() in (".", "..") or "/" in name or "\0" in name:
            raise InvalidRequest(f"invalid model name '{name}', model name must not contain path traversal characters")
        await self._finish(self._load(name, overrides))

    async def unload(self, name: str) -> None:
        """Serves the model no more.

        Returns when its memory has been given back, or at once while requests are still in flight.
        """
        self._check_explicit()
        await self._finish(self._unload(name))

    def _check_explicit(self) -> None:
        if self._options.model_control_mode != "explicit":
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")

    async def _load(self, name: str, overrides: LoadOverrides) -> None:
        async with self._lock(name):
            try:
                candidate = await asyncio.to_thread(self._read, name, overrides)
            except EfserveError as exc:
                raise LoadFailed(f"failed to load '{name}', failed to poll from model repository: {exc}") from exc
            held = self.allotment.held(name)
            versions = self._take(candidate)
            fresh = not any(version.state is VersionState.READY for version in self._catalog.versions(name))
            before = self._catalog.replace(name, versions) if fresh else []
            try:
                await self._room_to_start(name)
                await self._start(versions, gives_way=not fresh)
            except BaseException:
                self.allotment.restore(name, held)
                await self._end(versions, candidate.place)
                raise
            failed = [version for version in versions if version.state is not VersionState.READY]
            if failed:
                self.allotment.restore(name, held)
                self._give_up(candidate, versions, [*failed] if fresh else [])
                raise InvalidRequest(_why_not(name, failed))
            if not fresh:
                before = self._catalog.replace(name, versions)
            self._retire(name, before)
            self._overridden[name] = (candidate.config_json, candidate.seen)
            if candidate.place:
                self._places[name] = candidate.place
            log.info("model=%s loaded, versions %s", name, [version.version for version in versions])

    async def _unload(self, name: str) -> None:
        async with self._lock(name):
            self._overridden.pop(name, None)
            before = self._catalog.replace(name, ())
            held = self.allotment.held(name)
            busy = any(not version.is_idle for version in before)
            task = self._retire(name, before)
            task.add_done_callback(lambda _: self.allotment.release(name, held))
        if not busy:
            await task
        log.info("model=%s unloaded", name)

    def _retained(self, name: str, overrides: LoadOverrides) -> LoadOverrides:
        """What a load stands for: one without parameters keeps the config that came with an earlier one.

        As long as the model has not been unloaded, nor its files changed.
        """
        config_json, seen = self._overridden.get(name, ("", None))
        path = model_folders(self._options.model_repository).get(name)
        if overrides != _NO_OVERRIDES or not config_json or path is None or fingerprint(path) != seen:
            return overrides
        return LoadOverrides(config_json)

    def _read(self, name: str, overrides: LoadOverrides) -> _Candidate:
        """The model as the repository and the request have it; runs in a thread, as it reads and writes files."""
        overrides = self._retained(name, overrides)
        check_files(overrides.files, has_config=bool(overrides.config_json))
        place = write_files(name, overrides.files) if overrides.files else None
        seen: object = None
        try:
            if place is not None:
                folder = read_overridden(Path(place.name, name), overrides)
            else:
                places = model_places(self._options.model_repository).get(name, [])
                if not places or not self._may_serve(name):
                    raise LoadFailed(f"model '{name}' is in no model repository")
                if len(places) > 1:
                    raise LoadFailed(f"{DOUBLED}: {', '.join(map(str, places))}")
                seen = fingerprint(places[0])
                folder = read_overridden(places[0], overrides)
            _check_versions(folder)
            return _Candidate(folder, place, overrides.config_json, seen)
        except EfserveError:
            if place is not None:
                place.cleanup()
            raise

    def _take(self, candidate: _Candidate) -> list[ServedVersion]:
        """The versions of a model on the partitions that it gets; InvalidRequest where it can have none."""
        folder = candidate.folder
        held = self.allotment.held(folder.name)
        try:
            return self._versions(folder, self.allotment.allot(folder))
        except EfserveError as exc:
            self.allotment.restore(folder.name, held)
            if candidate.place is not None:
                candidate.place.cleanup()
            raise InvalidRequest(
                f"failed to load '{folder.name}', load failed for model '{folder.name}': {exc}"
            ) from exc

    def _give_up(self, candidate: _Candidate, versions: Iterable[ServedVersion], shown: list[ServedVersion]) -> None:
        """A load has failed: what started of it ends; `shown` are the versions whose reasons the index tells."""
        if shown:
            self._catalog.replace(candidate.folder.name, shown)
        self._keep(self._end(versions, candidate.place))

    # Polling

    def _look(self) -> dict[str, object]:
        found = model_folders(self._options.model_repository)
        return {name: fingerprint(path) for name, path in found.items() if self._may_serve(name)}

    async def _poll_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._options.repository_poll_secs)
            try:
                await self.poll()
            except Exception as exc:  # noqa: BLE001 - nobody awaits this task, and polling goes on whatever one look met
                log.error("the model repository could not be polled: %s", _told(exc))

    async def poll(self) -> None:
        """Looks at the repositories once and follows what has changed in them since the last look."""
        before, self._seen = self._seen, await asyncio.to_thread(self._look)
        await self._follow({name: self._unload(name) for name in before.keys() - self._seen.keys()})
        changed = [name for name, facts in self._seen.items() if before.get(name) != facts]
        for name, error in (await self._follow({name: self._load(name, _NO_OVERRIDES) for name in changed})).items():
            if not self._catalog.versions(name):
                self._catalog.add_broken(name, _told(error))

    async def _follow(self, changes: dict[str, Coroutine[Any, Any, None]]) -> dict[str, Exception]:
        """Makes changes of several models; the errors of those that could not be made, which have been logged."""
        outcomes = await asyncio.gather(*changes.values(), return_exceptions=True)
        errors = {name: each for name, each in zip(changes, outcomes, strict=True) if isinstance(each, Exception)}
        for name, error in errors.items():
            log.error("model=%s: %s", name, _told(error))
        return errors

    # Lives

    def _may_serve(self, name: str) -> bool:
        return not self._options.model or name in self._options.model

    def _versions(self, folder: ModelFolder, allotted: Allotted) -> list[ServedVersion]:
        numbers = _check_versions(folder)
        labels = read_labels(folder.path, folder.config)
        if folder.config.optimization:
            log.warning("model=%s optimization in its config has no effect here", folder.name)
        planned = allotted.planned
        if planned is not None:  # the latest version, which was profiled
            planned = planned.with_files(folder, model_folders(self._options.model_repository))
            first = next(iter(planned.files.values()))
            config = replace(first.config, name=folder.name)
            found = [replace(first, model=folder.name, version=str(numbers[-1]), config=config)]
        else:
            found = [folder.resolve(number, self._options.engine_for(folder, number)) for number in numbers]
        return [
            ServedVersion(allotted.of(version), labels, self._options, allotted.partitions, self._shared, planned)
            for version in found
        ]

    async def _start(self, versions: Collection[ServedVersion], *, gives_way: bool = False) -> None:
        # First, for a worker that misses its daemon runs without it and says nothing.
        await self._shared.mps.start(partition for version in versions for partition in version.partitions)

        async def start(version: ServedVersion) -> None:
            async with self._starts:
                await version.start(gives_way=gives_way)

        await asyncio.gather(*(start(version) for version in versions))

    def _retire(self, name: str, versions: list[ServedVersion]) -> asyncio.Task[None]:
        """Lets a model's versions that no request finds any more answer what they have, and ends them."""
        for version in versions:
            self._catalog.set_leaving(version, VersionState.UNLOADING)
        task = self._leaving[name] = self._keep(self._leave(versions, self._places.pop(name, None)))
        return task

    async def _room_to_start(self, name: str) -> None:
        """Waits a little for what the last load replaced to be gone.

        Three generations beside one another would take more memory; and a process that starts while another ends holds
        up the gateway and the workers for several times as long as each of them alone.
        """
        if leaving := self._leaving.get(name):
            await asyncio.wait((leaving,), timeout=_ALONE_S)

    async def _leave(self, versions: list[ServedVersion], place: "TemporaryDirectory[str] | None") -> None:
        try:
            await asyncio.gather(*(version.retire(self._options.drain_s) for version in versions))
        finally:
            await self._end(versions, place)
            for version in versions:
                self._catalog.set_leaving(version, VersionState.UNAVAILABLE)

    async def _end(self, versions: Iterable[ServedVersion], place: "TemporaryDirectory[str] | None") -> None:
        await asyncio.gather(*(version.stop(0) for version in versions))
        if place is not None:
            place.cleanup()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of our own, which nobody's going away ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work to its end, even if the client goes away; Unavailable when the server stops first."""
        task = self._keep(work)
        await asyncio.wait((task,))
        if task.cancelled():
            raise Unavailable("the server is stopping")
        task.result()


def _check_plan_alone(options: ServeConfig) -> None:
    """UsageError for options that say what a plan says already."""
    said = {
        "--model": options.model,
        "--engine": options.engine,
        "--instances": options.instances,
        "--threads": options.threads,
        "--share": options.share,
        "--trt": options.trt,
        "--max-batch": options.max_batch,
        "--queue-delay-us": options.queue_delay_us is not None,
        "--model-control-mode": options.model_control_mode != "none",
    }
    if given := [name for name, value in said.items() if value]:
        raise UsageError(f"--plan decides what {given[0]} does: leave one of them away")


def _check_versions(folder: ModelFolder) -> tuple[int, ...]:
    """The versions to serve; LoadFailed where there is none."""
    numbers = folder.served_versions()
    if not numbers:
        raise LoadFailed(f"version_policy of '{folder.name}' selects none of its versions {list(folder.versions)}")
    return numbers


def _told(error: Exception) -> str:
    """The message of an error that is meant to be read; before that of any other, what it is."""
    return str(error) if isinstance(error, (EfserveError, OSError)) else f"{type(error).__name__}: {error}"


def _why_not(name: str, failed: list[ServedVersion]) -> str:
    """In Triton's words."""
    states = "".join(f"version {v.version} is at UNAVAILABLE state: Internal: {v.reason};\n" for v in failed)
    return f"failed to load '{name}', load failed for model '{name}': {states}"
