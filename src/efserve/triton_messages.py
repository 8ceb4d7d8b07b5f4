"""Triton's messages as protobuf has them, without the gRPC library that lies in the same package.

`import tritonclient.grpc` loads all of gRPC, which a server that speaks HTTP/2 itself has no use for; the messages need
protobuf alone. Whoever imports that package later finds these very modules in it.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "tritonclient.grpc"


def load(name: str) -> Any:
    """A module of generated messages of that package: `model_config_pb2` or `service_pb2`."""
    whole = f"{_PACKAGE}.{name}"
    if (known := sys.modules.get(whole)) is not None:
        return known
    package = importlib.util.find_spec("tritonclient")
    for folder in (package.submodule_search_locations or ()) if package else ():
        spec = importlib.util.spec_from_file_location(whole, Path(folder, "grpc", f"{name}.py"))
        if spec is not None and spec.loader is not None and Path(spec.origin or "").is_file():
            module = importlib.util.module_from_spec(spec)
            with _package():
                sys.modules[whole] = module
                spec.loader.exec_module(module)
            return module
    return import_module(whole)


@contextmanager
def _package() -> Iterator[None]:
    """Something to stand for the package while its modules import one another from it."""
    if _PACKAGE in sys.modules:
        yield
        return
    sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


model_config_pb2 = load("model_config_pb2")
