"""The text of config.pbtxt, read back."""

from hypothesis import given
from hypothesis import strategies as st

from efserve.converter.config_text import config_text
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.pbtxt import parse_config
from efserve.tensors import DATATYPES, TensorSpec

TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12)
DIMS = st.lists(st.integers(-1, 9).filter(bool), max_size=4).map(tuple)  # no config may say 0
SPECS = st.builds(TensorSpec, TEXTS, st.sampled_from(DATATYPES), DIMS)


@given(
    st.lists(SPECS, min_size=1, max_size=3, unique_by=lambda spec: spec.name),
    st.lists(SPECS, min_size=1, max_size=3, unique_by=lambda spec: spec.name),
    st.integers(0, 64),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.booleans(),
)
def test_text_reads_back_as_the_config(
    inputs: list[TensorSpec], outputs: list[TensorSpec], max_batch: int, parameters: dict[str, str], labelled: bool
) -> None:
    config = ModelConfig(
        "model",
        max_batch_size=max_batch,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dynamic_batching=DynamicBatching() if max_batch else None,
        label_filenames={outputs[0].name: "labels.txt"} if labelled else {},
        parameters=parameters,
    )
    assert parse_config(config_text(config), "model") == config
