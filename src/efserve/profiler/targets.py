"""What a profile run measures: the (model, engine) files that the options select, the batches.

Reads the repository and runs nothing.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from efserve import repository
from efserve.errors import EfserveError, UsageError
from efserve.profiler.options import DEFAULT_MAX_BATCH, ProfileConfig
from efserve.profiles import profile_path
from efserve.repository import ModelFolder, ModelVersion


@dataclass(frozen=True, slots=True)
class Target:
    """One model file to profile, and where its profile goes."""

    model: ModelVersion
    file: Path
    csv_path: Path

    @property
    def name(self) -> str:
        """What people read: `digits.onnx`."""
        return f"{self.model.model}.{self.model.engine}"


@dataclass(frozen=True, slots=True)
class Found:
    """The targets in the repositories, and a sentence for each model that cannot be one."""

    targets: tuple[Target, ...]
    failures: tuple[str, ...]


def find_targets(config: ProfileConfig, device: str) -> Found:
    """Every (model, engine) asked for, in the latest version that the model's policy serves.

    Raises UsageError when there is nothing to measure, and what `repository.scan` raises.
    """
    scan = repository.scan(config.model_repository, config.model)
    targets: list[Target] = []
    failures = [f"{name}: {error}" for name, error in scan.errors.items()]
    for model in scan.models:
        try:
            targets += _targets_of(model, config, device)
        except EfserveError as error:
            failures.append(f"{model.name}: {error}")
    if not targets and not failures:
        where = ", ".join(map(str, config.model_repository))
        raise UsageError(f"nothing to profile in {where}: no model there has a file for {_engines_text(config)}")
    return Found(tuple(targets), tuple(failures))


def _targets_of(model: ModelFolder, config: ProfileConfig, device: str) -> list[Target]:
    versions = model.served_versions()
    if not versions:
        raise UsageError("its version_policy selects none of its versions")
    available = model.engines(versions[-1])
    # An engine asked for is an error of a model that was named, and no reason to speak of one that was not.
    if config.engine:
        wanted = config.engine if config.model else [engine for engine in config.engine if engine in available]
    else:
        wanted = model.usual_engines(versions[-1])
    if not available:
        model.resolve(versions[-1])  # raises, naming the files that were expected
    targets = []
    for engine in wanted:
        version = model.resolve(versions[-1], engine)
        csv_path = profile_path(config.output, device, model.name, engine)
        targets.append(Target(version, version.folder / model.filename(engine), csv_path))
    return targets


def _engines_text(config: ProfileConfig) -> str:
    return " or ".join(config.engine) or "any engine"


def batch_sizes(config: ProfileConfig, model_max_batch: int) -> tuple[int, ...]:
    """Batches to measure, ascending: those asked for, else 1, 2, 4, ... and the maximum itself."""
    if config.batches:
        return tuple(sorted(set(config.batches)))
    largest = config.max_batch or max(DEFAULT_MAX_BATCH, model_max_batch)
    return (*(1 << power for power in range((largest - 1).bit_length())), largest)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
