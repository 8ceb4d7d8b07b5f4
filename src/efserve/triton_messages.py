"""Triton's ModelConfig as protobuf messages, without the gRPC library that lies in the same package.

`import tritonclient.grpc` loads all of gRPC, a quarter of the time that `efserve serve` needs for its imports; the
messages need protobuf alone. Whoever imports that package later finds this very module in it.
"""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

_NAME = "tritonclient.grpc.model_config_pb2"


def _load() -> ModuleType:
    if (known := sys.modules.get(_NAME)) is not None:
        return known
    package = importlib.util.find_spec("tritonclient")
    for folder in (package.submodule_search_locations or ()) if package else ():
        spec = importlib.util.spec_from_file_location(_NAME, Path(folder, "grpc", "model_config_pb2.py"))
        if spec is not None and spec.loader is not None and Path(spec.origin or "").is_file():
            module = importlib.util.module_from_spec(spec)
            sys.modules[_NAME] = module
            spec.loader.exec_module(module)
            return module
    return import_module(_NAME)


model_config_pb2 = _load()
