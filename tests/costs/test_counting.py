"""Counts against what really happens: PyTorch's FLOP counter, the tensors of every product, the weights."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from llmcourse import costs
from llmcourse.attention import attention_reference, sdpa
from llmcourse.costs import BF16, MODELS, Cost, Precision, Step, layer_costs, model_costs, total
from llmcourse.model import Decoder, DecoderConfig
from llmcourse.pretrained import embedded_names, find_checkpoint, read_config
from tests.costs.strategies import formats, precision_of, shapes_of, sizes, step_of, steps

PROMPT, CHUNK, BATCH = 20, 7, 2
CONFIGS = [  # key/value heads of 4, norms on heads, tied embeddings, biases
    DecoderConfig(100, 24, 40, 3, 4, kv, 8, 64, qk_norm=norm, tie_word_embeddings=tied, attention_bias=bias)
    for kv, norm, tied, bias in [
        (4, False, False, False),
        (2, True, True, False),
        (2, False, True, True),
        (1, True, False, True),
    ]
]
EXAMPLES = settings(max_examples=20, deadline=None)
LINEAR = {"QKV projection", "output projection", "gate and up projection", "down projection", "output head"}


@pytest.mark.parametrize("attention", [sdpa, attention_reference])
@pytest.mark.parametrize("config", CONFIGS)
def test_products_are_those_that_pytorch_counts(config, attention):
    """Without a cache, filling one, continuing in a chunk, one token more: FLOPs agree to the last one."""
    model = Decoder(config, attention).eval()
    cache = model.new_cache(BATCH, 64)
    for step in (
        Step.prefill(BATCH, PROMPT, cache=False),
        Step.prefill(BATCH, PROMPT),
        Step.chunk(BATCH, CHUNK, past=PROMPT),
        Step.decode(BATCH, context=PROMPT + CHUNK + 1),
    ):
        ids = torch.randint(config.vocab_size, (BATCH, step.new_tokens))
        # The fused attention of the CPU is unknown to PyTorch's counter.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(ids, cache if step.cache else None)
        assert total(model_costs(config, step)).matmul_flops == counter.get_total_flops(), step


class Products(TorchDispatchMode):
    """Adds up the bytes of the operands and results of every matrix product of weights."""

    def __init__(self):
        super().__init__()
        self.read_bytes = self.write_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.read_bytes += sum(argument.nbytes for argument in args)
            self.write_bytes += result.nbytes
        return result


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("step", [Step.prefill(BATCH, PROMPT, cache=False), Step.decode(BATCH, 1)])
def test_linear_layers_move_the_tensors_that_they_have(config, step):
    model = Decoder(config).eval()
    ids = torch.randint(config.vocab_size, (BATCH, step.new_tokens))
    with torch.no_grad(), Products() as products:
        model(ids)
    counted = [c for c in model_costs(config, step, Precision.uniform("fp32")) if c.name in LINEAR]
    # The model reads its input three times for Q, K and V, and twice for gate and up; here it counts once.
    again = 3 * config.num_layers * BATCH * step.new_tokens * config.hidden_size * 4
    assert sum(cost.read_bytes for cost in counted) + again == products.read_bytes
    assert sum(cost.write_bytes for cost in counted) == products.write_bytes


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_are_those_of_the_model(config):
    model = Decoder(config)
    assert costs.num_parameters(config) == model.num_parameters
    fp32 = sum(parameter.nbytes for parameter in model.parameters())
    assert costs.weight_bytes(config, Precision.uniform("fp32")) == fp32


def test_a_decode_step_reads_every_weight_but_the_rest_of_the_embedding():
    shapes = MODELS["Llama-3-8B"]
    step = total(model_costs(shapes, Step.decode(1, 1)))
    unread = (shapes.vocab_size - 1) * shapes.hidden_size * 2
    assert step.weight_bytes == costs.weight_bytes(shapes) - unread


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Llama-3-8B", 8_030_261_248), ("Llama-2-7B", 6_738_415_616), ("Qwen3-0.6B", 596_049_920)],
)
def test_named_models_have_the_published_number_of_parameters(name, parameters):
    assert costs.num_parameters(MODELS[name]) == parameters


@pytest.mark.parametrize("name", embedded_names())
def test_the_embedded_models_are_those_of_their_checkpoints(name):
    config = read_config(find_checkpoint(name))
    fields = [field.name for field in dataclasses.fields(MODELS[name])]
    assert {f: getattr(MODELS[name], f) for f in fields} == {f: getattr(config, f) for f in fields}


@EXAMPLES
@given(sizes, steps, formats)
def test_fusing_saves_exactly_the_scores(sizes, steps, formats):
    shapes, step, precision = shapes_of(sizes), step_of(steps), precision_of(formats)
    fused = layer_costs(shapes, step, precision, attention="fused")
    unfused = layer_costs(shapes, step, precision, attention="unfused")
    scores = shapes.num_heads * step.batch * step.new_tokens * step.keys
    saved = total(unfused).traffic_bytes - total(fused).traffic_bytes
    assert saved == 4 * precision.num_bytes("activations", scores)
    assert total(fused).flops == total(unfused).flops


@EXAMPLES
@given(sizes, steps, formats)
def test_decoding_is_a_chunk_of_one_token(sizes, steps, formats):
    shapes, precision, batch, past = shapes_of(sizes), precision_of(formats), steps["batch"], steps["past"]
    decoded = model_costs(shapes, Step.decode(batch, past + 1), precision)
    assert decoded == model_costs(shapes, Step.chunk(batch, 1, past), precision)


@EXAMPLES
@given(sizes, steps, formats)
def test_a_chunk_of_everything_is_a_prefill(sizes, steps, formats):
    shapes, precision, batch, length = (
        shapes_of(sizes),
        precision_of(formats),
        steps["batch"],
        steps["new_tokens"],
    )
    whole = model_costs(shapes, Step.prefill(batch, length), precision)
    assert whole == model_costs(shapes, Step.chunk(batch, length, 0), precision)


@EXAMPLES
@given(sizes, steps)
def test_skipping_leaves_the_pairs_that_are_seen(sizes, steps):
    shapes, step = shapes_of(sizes), step_of(steps)
    seen = sum(step.past + query + 1 for query in range(step.new_tokens))
    (attention,) = [c for c in layer_costs(shapes, step, skip_masked=True) if c.name == "attention"]
    heads = step.batch * shapes.num_heads
    assert attention.matmul_flops == 4 * heads * seen * shapes.head_dim
    assert attention.other_flops == 4 * heads * seen


@EXAMPLES
@given(sizes, steps)
def test_chunks_compute_what_a_prefill_computes(sizes, steps):
    """Where masked products are skipped, cutting a prompt in two costs no FLOP more."""
    shapes, step = shapes_of(sizes), step_of(steps)
    if step.past == 0:
        return
    parts = (Step.prefill(step.batch, step.past), step)
    whole = Step.prefill(step.batch, step.keys)
    cut = total(c for part in parts for c in model_costs(shapes, part, skip_masked=True))
    assert cut.flops == total(model_costs(shapes, whole, skip_masked=True)).flops


@EXAMPLES
@given(sizes, steps, formats)
def test_more_of_anything_costs_no_less(sizes, steps, formats):
    shapes, step, precision = shapes_of(sizes), step_of(steps), precision_of(formats)
    before = total(model_costs(shapes, step, precision))
    for name in ("batch", "new_tokens", "past"):
        more = total(
            model_costs(shapes, dataclasses.replace(step, **{name: getattr(step, name) + 1}), precision)
        )
        assert more.flops >= before.flops and more.traffic_bytes > before.traffic_bytes, name
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "head_dim"):
        larger = dataclasses.replace(shapes, **{name: getattr(shapes, name) + 1})
        more = total(model_costs(larger, step, precision))
        assert more.flops >= before.flops and more.traffic_bytes > before.traffic_bytes, name


@EXAMPLES
@given(sizes, steps)
def test_fewer_bits_move_fewer_bytes_and_compute_the_same(sizes, steps):
    shapes, step = shapes_of(sizes), step_of(steps)
    full = total(model_costs(shapes, step, BF16))
    for fewer in (Precision("int8"), Precision("int4"), Precision(cache="int8")):
        low = total(model_costs(shapes, step, fewer))
        assert low.traffic_bytes < full.traffic_bytes and low.flops == full.flops
    assert total(model_costs(shapes, step, Precision("int4"))).cache_bytes == full.cache_bytes
    assert total(model_costs(shapes, step, Precision(cache="int8"))).weight_bytes == full.weight_bytes


@EXAMPLES
@given(sizes, steps, formats)
def test_parts_lie_inside_the_whole(sizes, steps, formats):
    for cost in model_costs(shapes_of(sizes), step_of(steps), precision_of(formats)):
        assert 0 <= cost.weight_bytes <= cost.read_bytes
        assert cost.weight_bytes + cost.cache_bytes <= cost.traffic_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_has_the_format_of_its_kind(tied):
    """Matrices in 4 bits, the head in 8, all else in 16; a tied embedding is the head."""
    shapes = dataclasses.replace(MODELS["base"], tie_word_embeddings=tied, qk_norm=True, attention_bias=True)
    precision = Precision("int4", head="int8")
    width, wide, vocabulary, layers = 320, 896, 12_288, 6
    matrices = width * (320 + 2 * 64) + 320 * width + 3 * width * wide
    others = 2 * width + (320 + 2 * 64) + 2 * 32  # norms, biases, norms of heads
    step = Step.decode(3, 5)
    read = {cost.name: cost.weight_bytes for cost in model_costs(shapes, step, precision)}
    assert read.pop("embedding") == 3 * width * (1 if tied else 2)
    assert read.pop("output head") == vocabulary * width
    assert read.pop("first norm") == 2 * width
    assert sum(read.values()) == layers * (matrices // 2 + 2 * others)
    embedding = 0 if tied else 2 * vocabulary * width
    held = layers * (matrices // 2 + 2 * others) + 2 * width + vocabulary * width + embedding
    assert costs.weight_bytes(shapes, precision) == held


def test_without_logits_there_is_no_head():
    shapes = MODELS["base"]
    ending = [model_costs(shapes, Step.prefill(1, 8, logit_positions=n))[-1] for n in (0, 1, None)]
    assert [cost.name for cost in ending] == ["MLP add & norm", "output head", "output head"]
    assert ending[2].flops == 8 * ending[1].flops


def test_costs_add_up():
    one = Cost("a", 10, 2, 30, 10, weight_bytes=20, cache_bytes=5)
    assert total([one, one]) == Cost("total", 20, 4, 60, 20, weight_bytes=40, cache_bytes=10)
    assert one * 3 == Cost("a", 30, 6, 90, 30, weight_bytes=60, cache_bytes=15, repeats=3)
    assert one.flops == 12 and one.traffic_bytes == 40 and one.intensity == 0.3
    assert total([]).intensity == 0


def test_every_layer_costs_the_same():
    shapes, step = MODELS["draft"], Step.decode(1, 5)
    one_layer, model = layer_costs(shapes, step), model_costs(shapes, step)
    assert tuple(cost * shapes.num_layers for cost in one_layer) == model[2:-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "flash"}, "attention must be 'fused' or 'unfused', got 'flash'"),
        ({"attention": "unfused", "skip_masked": True}, "skip_masked must be False for unfused attention"),
    ],
)
def test_other_ways_to_attend_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_costs(MODELS["base"], Step.decode(1, 1), **settings)


@pytest.mark.parametrize("times", [0, -2])
def test_an_operation_runs_at_least_once(times):
    with pytest.raises(ValueError, match=f"times must be an integer of at least 1, got {times}"):
        layer_costs(MODELS["base"], Step.decode(1, 1))[0] * times
