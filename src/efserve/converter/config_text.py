"""Writes `config.pbtxt`: the text that people will read and edit, in Triton's format."""

import json
from collections.abc import Mapping, Sequence

from efserve.model_config import ModelConfig
from efserve.pbtxt import backend_name
from efserve.tensors import TensorSpec


def config_text(config: ModelConfig) -> str:
    """`config.pbtxt` of a converted model: its tensors, batch, labels and parameters."""
    lines = [f"name: {_quoted(config.name)}", f"max_batch_size: {config.max_batch_size}"]
    if config.engine:
        lines.append(f"backend: {_quoted(backend_name(config.engine))}")
    lines += _tensors("input", config.inputs, {})
    lines += _tensors("output", config.outputs, config.label_filenames)
    if config.dynamic_batching is not None:
        lines.append("dynamic_batching {}")
    for key, value in config.parameters.items():
        lines += ["parameters {", f"  key: {_quoted(key)}", f"  value {{ string_value: {_quoted(value)} }}", "}"]
    return "\n".join(lines) + "\n"


def _tensors(kind: str, specs: Sequence[TensorSpec], label_filenames: Mapping[str, str]) -> list[str]:
    lines = []
    for spec in specs:
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        lines += [
            f"{kind} {{",
            f"  name: {_quoted(spec.name)}",
            f"  data_type: TYPE_{datatype}",
            f"  dims: [{', '.join(map(str, spec.dims))}]",
        ]
        if labels := label_filenames.get(spec.name):
            lines.append(f"  label_filename: {_quoted(labels)}")
        lines.append("}")
    return lines


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
