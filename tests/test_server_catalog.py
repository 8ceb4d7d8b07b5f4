"""The served models by name and version: what is found, and with which words what is not."""

from pathlib import Path

import pytest

from efserve.errors import EfserveError, NotFound, Unavailable
from efserve.model_config import ModelConfig
from efserve.repository import ModelVersion
from efserve.server.catalog import Catalog
from efserve.server.options import ServeConfig
from efserve.server.version import ServedVersion, VersionState


def catalog() -> Catalog:
    """Versions 2 and 10 of model m, both loading, and a model that is broken."""
    models = Catalog()
    found = [ModelVersion("m", number, Path("m") / number, "onnx", ModelConfig("m")) for number in ("2", "10")]
    models.replace("m", [ServedVersion(version, {}, ServeConfig()) for version in found])
    models.add_broken("b", "no files")
    return models


def test_readiness_may_leave_failed_models_out() -> None:
    for strict in (True, False):
        models = Catalog(strict=strict)
        models.add_broken("b", "no files")
        assert not models.ready()
        models.set_started()
        assert models.ready() is not strict


def test_the_latest_version_comes_first() -> None:
    assert [version.version for version in catalog()] == ["10", "2"]


@pytest.mark.parametrize(
    ("name", "version", "error", "says"),
    [
        ("x", "", NotFound, "Request for unknown model: 'x' is not found"),
        ("m", "", NotFound, "Request for unknown model: 'm' has no available versions"),
        ("b", "", NotFound, "Request for unknown model: 'b' has no available versions"),
        ("m", "2", Unavailable, "Request for unknown model: 'm' version 2 is not at ready state"),
        ("m", "3", NotFound, "Request for unknown model: 'm' version 3 is not found"),
        ("m", "02", NotFound, "Request for unknown model: 'm' version 02 is not found"),
        ("m", "\u0662", NotFound, "is not found"),
        ("m", "9" * 5000, NotFound, "is not found"),
    ],
)
def test_what_is_not_found(name: str, version: str, error: type[EfserveError], says: str) -> None:
    with pytest.raises(error, match=says):
        catalog().model(name, version)


def test_what_has_been_unloaded_is_known_but_not_ready() -> None:
    models = catalog()
    for version in models.replace("m", []):
        models.set_leaving(version, VersionState.UNAVAILABLE)
    with pytest.raises(NotFound, match="Request for unknown model: 'm' has no available versions"):
        models.model("m", "")
    with pytest.raises(Unavailable, match="Request for unknown model: 'm' version 2 is not at ready state"):
        models.model("m", "2")
    with pytest.raises(NotFound, match="Request for unknown model: 'm' version 3 is not found"):
        models.model("m", "3")


def test_what_is_in_two_repositories_is_told_once() -> None:
    models = Catalog(lambda: {"n": "", "twice": "in two"})
    assert [(entry.name, entry.state, entry.reason) for entry in models.index(only_ready=False)] == [
        ("n", "", ""),
        ("twice", "UNAVAILABLE", "in two"),
    ]
    assert models.index(only_ready=True) == []
    models.add_broken("twice", "in two")
    assert [entry.name for entry in models.index(only_ready=False)] == ["n", "twice"]
