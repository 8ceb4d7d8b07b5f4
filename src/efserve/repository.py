"""A model repository on disk: which models, versions and engine files there are.

Layout as Triton's: `<repository>/<model>/config.pbtxt` (optional) and `<model>/<version>/model.onnx | model.pt |
model.py`. Reads directories and configs; loads no model.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efserve.errors import ConfigError, EfserveError, NotFound, UsageError
from efserve.model_config import ModelConfig
from efserve.pbtxt import read_config

# engine -> its file in a version folder, in the order in which they are preferred; two engines may take the same file
ENGINE_FILES = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "python": "model.py",
    "openvino": "model.onnx",
    "tensorrt": "model.onnx",  # a plan from elsewhere is loaded only where the config names it
}
DOUBLED = "model appears in two or more repositories"  # as Triton says it


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version folder and the engine that is to run it."""

    model: str
    version: str
    folder: Path
    engine: str
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model of a repository: its config as written and its versions in ascending order."""

    name: str
    path: Path
    config: ModelConfig
    versions: tuple[int, ...]

    def served_versions(self) -> tuple[int, ...]:
        """Versions that the config's `version_policy` selects, ascending."""
        policy = self.config.version_policy
        if policy.specific:
            return tuple(v for v in self.versions if v in policy.specific)
        return self.versions[-policy.latest :] if policy.latest else self.versions

    def engines(self, version: int) -> tuple[str, ...]:
        """Engines that have a file in the version's folder, preferred first."""
        folder = self.path / str(version)
        return tuple(engine for engine in ENGINE_FILES if (folder / self.filename(engine)).is_file())

    def usual_engines(self, version: int) -> tuple[str, ...]:
        """One engine for each file in the version's folder: the config's, else the preferred one."""
        chosen: dict[str, str] = {}
        for engine in self.engines(version):
            file = self.filename(engine)
            chosen[file] = engine if engine == self.config.engine else chosen.get(file, engine)
        return tuple(chosen.values())

    def filename(self, engine: str) -> str:
        """Name of the engine's model file: the config's own for its engine and its suffix, `model.<suffix>` else."""
        default = self.config.default_model_filename
        return default if default and self._takes_default(engine) else ENGINE_FILES[engine]

    def _takes_default(self, engine: str) -> bool:
        suffix = Path(self.config.default_model_filename).suffix
        return engine == self.config.engine or suffix == Path(ENGINE_FILES[engine]).suffix

    def resolve(self, version: int, engine: str = "") -> ModelVersion:
        """The version with its engine decided: the one asked for, else the config's, else the first with a file."""
        available = self.engines(version)
        chosen = engine or self.config.engine or next(iter(available), "")
        folder = self.path / str(version)
        if not chosen:
            names = ", ".join(dict.fromkeys(ENGINE_FILES.values()))
            raise ConfigError(
                f"version {version} of '{self.name}' has no model file; expected one of {names} in {folder}"
            )
        if chosen not in available:
            has = ", ".join(available) or "none"
            raise ConfigError(
                f"version {version} of '{self.name}' has no {self.filename(chosen)} for engine {chosen}; "
                f"it has files for: {has}"
            )
        return ModelVersion(self.name, str(version), folder, chosen, self.config)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk over repositories found: usable models, and the error of each that is not."""

    models: tuple[ModelFolder, ...]
    errors: dict[str, EfserveError]


def model_places(repositories: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders of each model, by its name; UsageError for a repository that is none.

    A model that has several is served from none of them.
    """
    places: dict[str, list[Path]] = {}
    for repository in {path.resolve(): path for path in repositories}.values():  # one given twice is one
        if not repository.is_dir():
            raise UsageError(f"model repository {repository} is not a folder; name one with --model-repository")
        for path in sorted(repository.iterdir()):
            if path.is_dir() and not path.name.startswith((".", "_")):
                places.setdefault(path.name, []).append(path)
    return places


def model_folders(repositories: Sequence[Path]) -> dict[str, Path]:
    """The folder of each model that has but one, by its name; errors as in `model_places`."""
    return {name: paths[0] for name, paths in model_places(repositories).items() if len(paths) == 1}


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What changes when anything in a model's folder does: path, time and size of each file, but for hidden folders."""
    found = set()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what engines keep for themselves
        for file in files:
            path = Path(parent, file)
            try:
                facts = path.stat()
            except OSError:  # it has just gone, or leads nowhere
                continue
            found.add((str(path.relative_to(folder)), facts.st_mtime_ns, facts.st_size))
    return frozenset(found)


def scan(repositories: Sequence[Path], names: Sequence[str] = ()) -> Scan:
    """All models of the repositories, or those named.

    Raises UsageError for a repository that is no folder, NotFound for a name that none of them holds.
    """
    places = model_places(repositories)
    for name in names:
        if name not in places:
            known = ", ".join(places) or "none"
            where = ", ".join(str(repository) for repository in repositories)
            raise NotFound(f"model '{name}' is not in {where}; it has: {known}")
    models: list[ModelFolder] = []
    errors: dict[str, EfserveError] = {}
    for name in names or places:
        if len(places[name]) > 1:
            errors[name] = ConfigError(DOUBLED)
            continue
        try:
            models.append(read_model(places[name][0]))
        except ConfigError as exc:
            errors[name] = exc
    return Scan(tuple(models), errors)


def read_model(path: Path, config: ModelConfig | None = None) -> ModelFolder:
    """The model whose folder is `path`, with its own config or the one given instead.

    Raises ConfigError when the config is wrong or there are no versions.
    """
    config_path = path / "config.pbtxt"
    if config is None:
        config = read_config(config_path, path.name) if config_path.is_file() else ModelConfig(path.name)
    versions = sorted(int(child.name) for child in path.iterdir() if child.is_dir() and _is_version(child.name))
    if not versions:
        raise ConfigError(f"model '{path.name}' has no version folder; expected {path}/1 with a model file in it")
    return ModelFolder(path.name, path, config, tuple(versions))


def read_labels(folder: Path, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Labels per output, from the files that `label_filename` names; raises ConfigError for one that is missing."""
    labels = {}
    for output, filename in config.label_filenames.items():
        try:
            labels[output] = tuple((folder / filename).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as exc:  # of a name with a null character, of bytes that are no UTF-8
            raise ConfigError(f"label file of output '{output}' of '{config.name}' cannot be read: {exc}") from exc
    return labels


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")
