"""A model's folder made of what a load request brings: its config, and files in place of the repository's."""

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from efserve.errors import InvalidRequest
from efserve.frontend.service import LoadOverrides
from efserve.pbtxt import parse_config_json
from efserve.repository import ModelFolder, read_model


def read_overridden(folder: Path, overrides: LoadOverrides) -> ModelFolder:
    """The model in `folder`, whose name is the model's, with the config of the request where it brings one."""
    config = parse_config_json(overrides.config_json, folder.name) if overrides.config_json else None
    return read_model(folder, config)


def check_files(files: Mapping[str, bytes], *, has_config: bool) -> None:
    """Raise InvalidRequest unless every file stays inside the model's folder and a config comes along."""
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\0" in name or "\\" in name:
            raise InvalidRequest(
                f"Invalid file parameter 'file:{name}': its path must stay within model directory, as in "
                "'file:1/model.onnx'"
            )
    if files and not has_config:
        raise InvalidRequest("Load parameter 'config' must be specified for model file override")


def write_files(name: str, files: Mapping[str, bytes]) -> "tempfile.TemporaryDirectory[str]":
    """A new folder that holds the folder of model `name`, made of these files alone; ends with its owner.

    Nothing else is in it, so no link can lead out. InvalidRequest where a path is both file and folder.
    """
    place = tempfile.TemporaryDirectory(prefix="efserve-", ignore_cleanup_errors=True)
    try:
        for file, data in files.items():
            path = Path(place.name, name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as exc:
        place.cleanup()
        raise InvalidRequest(f"Invalid file parameter 'file:{file}': {exc.strerror}") from exc
    return place
