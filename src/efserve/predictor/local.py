"""A model of a repository, loaded into this process by the engine that would serve it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efserve.devices.cpu import usable_cores_here
from efserve.engines.base import Source
from efserve.engines.reshaped import load
from efserve.errors import InferenceFailed, LoadFailed, NotFound
from efserve.foreign import foreign
from efserve.partition import Partition
from efserve.predictor.model import Class, top_classes
from efserve.repository import read_labels, scan
from efserve.tensors import Array, TensorSpec


class LocalModel:
    """A loaded version."""

    def __init__(self, repository: Path, name: str, version: str, engine: str) -> None:
        """Loads the model; an empty version is the latest, an empty engine the one that `serve` would take."""
        found = scan([repository], [name])
        for error in found.errors.values():
            raise error
        (folder,) = found.models
        versions = folder.served_versions()
        wanted = version or str(versions[-1] if versions else folder.versions[-1])
        if wanted not in map(str, folder.versions):
            has = ", ".join(map(str, folder.versions))
            raise NotFound(f"model '{name}' has no version {wanted} in {repository}; it has {has}")
        chosen = folder.resolve(int(wanted), engine)
        with foreign(f"model '{name}' cannot be loaded", LoadFailed):
            source = Source(chosen.folder, chosen.config, Partition(threads=usable_cores_here()))
            self._engine = load(chosen.engine, source)
        self.config = self._engine.config
        self._labels = read_labels(folder.path, self.config)

    def classes(self, inputs: Sequence[Array], output: TensorSpec, top: int) -> list[tuple[Class, ...]]:
        """See `Model`."""
        scores = self.outputs(inputs)[self.config.outputs.index(output)]
        return top_classes(np.atleast_2d(scores), self._labels.get(output.name, ()), top)

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model`."""
        with foreign(f"model '{self.config.name}' failed", InferenceFailed):
            return list(self._engine.infer(inputs))

    def close(self) -> None:
        """See `Model`."""
        self._engine.close()
