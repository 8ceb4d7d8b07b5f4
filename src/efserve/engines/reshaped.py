"""An engine behind `reshape`: clients' shapes outside, the model's own inside, as views of the same memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from efserve.engines import base
from efserve.engines.base import Engine, Remark, Source
from efserve.model_config import ModelConfig
from efserve.reshapes import reshaped
from efserve.tensors import ABSENT, Array, Shape, TensorSpec


def load(name: str, source: Source) -> Engine:
    """The model of `source` as clients see it, loaded by engine `name`; errors as of `base.load`."""
    config = source.config
    if not (config.input_reshapes or config.output_reshapes):
        return base.load(name, source)
    return ReshapedEngine(base.load(name, replace(source, config=models_own(config))), config)


def models_own(config: ModelConfig) -> ModelConfig:
    """The config as the model file knows it: every tensor in its reshaped form."""
    return replace(
        config,
        inputs=_with_dims(config.inputs, config.input_reshapes),
        outputs=_with_dims(config.outputs, config.output_reshapes),
        input_reshapes={},
        output_reshapes={},
    )


class ReshapedEngine:
    """`engine`, which runs `models_own(config)`, as an engine of `config`."""

    def __init__(self, engine: Engine, config: ModelConfig) -> None:
        self._engine = engine
        inner = engine.config
        self.config = replace(
            inner,
            inputs=config.inputs or inner.inputs,
            outputs=config.outputs or inner.outputs,
            input_reshapes=config.input_reshapes,
            output_reshapes=config.output_reshapes,
        )
        self.version = engine.version
        self.warmup_runs = engine.warmup_runs
        self.device_ns = 0
        self._inputs = _forms(self.config, self.config.inputs, inner.inputs)
        self._outputs = _forms(self.config, self.config.outputs, inner.outputs)

    @property
    def remarks(self) -> Sequence[Remark]:
        """Those of the engine."""
        return self._engine.remarks

    def infer(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run the engine on reshaped inputs, and reshape its outputs back."""
        outputs = self._engine.infer([_as(array, *form) for array, form in zip(inputs, self._inputs, strict=True)])
        self.device_ns = self._engine.device_ns
        return [_as(array, own, dims) for array, (dims, own) in zip(outputs, self._outputs, strict=True)]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object] | None:
        """The engine's own call, over the same memory in the model's shapes."""
        run = self._engine.bind(
            [_as(array, *form) for array, form in zip(inputs, self._inputs, strict=True)],
            [_as(array, *form) for array, form in zip(outputs, self._outputs, strict=True)],
        )
        if run is None:
            return None

        def bound() -> None:
            run()
            self.device_ns = self._engine.device_ns

        return bound

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _with_dims(specs: Iterable[TensorSpec], reshapes: Mapping[str, Shape]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dims=reshapes.get(spec.name, spec.dims)) for spec in specs)


def _forms(config: ModelConfig, outer: Sequence[TensorSpec], inner: Sequence[TensorSpec]) -> list[tuple[Shape, Shape]]:
    """Whole shapes of each tensor, for clients and for the model."""
    pairs = zip(outer, inner, strict=True)
    return [(config.input_shape(client), config.input_shape(model)) for client, model in pairs]


def _as(array: Array, dims: Shape, target: Shape) -> Array:
    """A view of an array that has the shape `dims` in the shape `target`; one that has another is left as it is."""
    if array is ABSENT or dims == target or len(array.shape) != len(dims):
        return array
    return array.reshape(reshaped(array.shape, dims, target))
