"""Shapes, steps and precisions for hypothesis: plain numbers, so that what is drawn is easy to read."""

from hypothesis import strategies as st

from llmcourse.costs import ModelShapes, Precision, Step

SWITCHES = ("attention_bias", "output_bias", "qk_norm", "tie_word_embeddings")
sizes = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 300),
        "hidden_size": st.integers(1, 200),
        "intermediate_size": st.integers(1, 300),
        "num_layers": st.integers(1, 5),
        "num_kv_heads": st.integers(1, 4),
        "group": st.integers(1, 4),
        "head_dim": st.integers(1, 32).map(lambda half: 2 * half),
        **dict.fromkeys(SWITCHES, st.booleans()),
    }
)
steps = st.fixed_dictionaries(
    {"batch": st.integers(1, 20), "new_tokens": st.integers(1, 300), "past": st.integers(0, 400)}
)
formats = st.fixed_dictionaries(
    {
        "weights": st.sampled_from(["fp32", "bf16", "fp8", "int8", "int4"]),
        "activations": st.sampled_from(["fp32", "bf16", "fp16"]),
        "cache": st.sampled_from([None, "bf16", "int8", "int4"]),
        "group_size": st.sampled_from([None, 32, 128]),
    }
)


def shapes_of(drawn: dict) -> ModelShapes:
    given = dict(drawn)
    group = given.pop("group")
    return ModelShapes(num_heads=group * given["num_kv_heads"], **given)


def step_of(drawn: dict) -> Step:
    return Step.chunk(**drawn)


def precision_of(drawn: dict) -> Precision:
    return Precision(**drawn)
