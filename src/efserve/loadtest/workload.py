"""Files that describe mixed traffic: which models, how often, with what, and how fast the answers should be."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import msgspec

from efserve.arrivals import DISTRIBUTIONS
from efserve.errors import UsageError

_Positive = Annotated[float, msgspec.Meta(gt=0)]
MAX_MODELS = 255


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a workload."""

    model: str
    rate: _Positive  # requests/s
    version: str = ""
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    shapes: dict[str, list[Annotated[int, msgspec.Meta(ge=0)]]] = {}  # input -> dims of one sample
    slo_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    input: str = ""  # as --input; empty: what --input says
    distribution: str = ""  # empty: what --distribution says

    @property
    def shape_options(self) -> tuple[str, ...]:
        """The shapes in the form of --shape."""
        return tuple(f"{name}:{','.join(map(str, dims))}" for name, dims in self.shapes.items())


class _Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: list[Share]


def read_workload(path: Path) -> tuple[Share, ...]:
    """The models of a workload file, JSON or, where PyYAML is installed, YAML. Raises UsageError."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"--workload {path}: cannot read it: {exc.strerror}") from exc
    try:
        if path.suffix in (".yaml", ".yml"):
            shares = msgspec.convert(_yaml(path, data), _Workload).models
        else:
            shares = msgspec.json.decode(data, type=_Workload).models
    except msgspec.MsgspecError as exc:
        raise UsageError(f"--workload {path}: {exc}") from exc
    if not 1 <= len(shares) <= MAX_MODELS:
        raise UsageError(f'--workload {path}: expected 1 to {MAX_MODELS} models under "models", got {len(shares)}')
    for share in shares:
        if share.distribution not in ("", *DISTRIBUTIONS):
            known = ", ".join(DISTRIBUTIONS)
            raise UsageError(f"--workload {path}: distribution '{share.distribution}' is none of {known}")
    return tuple(shares)


def _yaml(path: Path, data: bytes) -> object:
    try:
        yaml = import_module("yaml")
    except ImportError as exc:
        raise UsageError(f"--workload {path}: YAML needs PyYAML (pip install pyyaml); JSON needs nothing") from exc
    try:
        found: object = yaml.safe_load(data)
    except yaml.YAMLError as exc:
        raise UsageError(f"--workload {path}: not YAML: {' '.join(str(exc).split())}") from exc
    return found
