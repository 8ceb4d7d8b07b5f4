"""An engine that runs an identity: it answers what it is given, by itself and with bound arrays."""

import numpy as np

from efserve.engines.base import Engine
from efserve.tensors import NUMPY_DTYPES, TensorSpec


def check_identity(engine: Engine, datatype: str) -> None:
    """Of tensors of shape [4]; closes the engine."""
    assert engine.config.inputs == (TensorSpec("input", datatype, (4,)),)
    array = np.ones((2, 4), NUMPY_DTYPES[datatype])
    (output,) = engine.infer([array])
    assert output.dtype == array.dtype
    np.testing.assert_array_equal(output, array)
    target = np.zeros_like(array)
    bound = engine.bind([array], [target])
    assert bound is not None
    bound()
    np.testing.assert_array_equal(target, array)
    array[:] = 0
    bound()
    np.testing.assert_array_equal(target, array)
    engine.close()
