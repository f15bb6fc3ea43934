"""Matrices on a CPU: another layout and products in parts change nothing but the order of a sum."""

import pytest
import torch
import torch.nn.functional as F

from llmcourse import pretrained
from llmcourse.kernels import blas


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture
def cut_everything(monkeypatch):
    """Even small matrices are cut, by any number of cores; returns how to set that number."""
    monkeypatch.setattr(blas, "LEAST_BYTES", 0)
    return lambda cores: monkeypatch.setattr(torch, "get_num_threads", lambda: cores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_neighbours_lie_along_the_longer_side(dtype):
    tall, wide = blas.lay_out(random(64, 24, dtype=dtype)), blas.lay_out(random(24, 64, dtype=dtype))
    assert tall.stride() == (1, 64) and wide.stride() == (64, 1)
    assert tall.equal(random(64, 24, dtype=dtype)) and wide.equal(random(24, 64, dtype=dtype))
    assert blas.lay_out(random(24, 24, dtype=dtype)).stride() == (1, 24)
    assert blas.lay_out(tall).data_ptr() == tall.data_ptr(), "what lies well is not copied"


def test_half_precision_lies_by_rows():
    assert blas.lay_out(random(64, 24, dtype=torch.bfloat16).t().contiguous().t()).is_contiguous()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 24), (24, 64), (63, 21), (21, 63)])
@pytest.mark.parametrize("cores", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("rows", [1, 2])
def test_products_in_parts_are_the_product(cut_everything, rows, cores, outputs, inputs, bias):
    cut_everything(cores)
    x, weight = random(rows, inputs), random(outputs, inputs)
    b = random(outputs) if bias else None
    for laid_out in (blas.lay_out(weight), weight):
        torch.testing.assert_close(blas.product(x, laid_out, b), F.linear(x, weight, b))


@pytest.mark.parametrize(("cores", "parts"), [(1, 1), (2, 2), (3, 2), (4, 4), (64, 4)])
def test_a_single_row_is_cut_for_the_cores_there_are(cut_everything, monkeypatch, cores, parts):
    cut_everything(cores)
    seen, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append(len(a)) or bmm(a, b))
    blas.product(random(1, 24), blas.lay_out(random(64, 24)))
    blas.product(random(1, 64), blas.lay_out(random(24, 64)))
    blas.product(random(2, 24), random(64, 24))  # several rows keep all cores busy as they are
    assert seen == ([parts] * 2 if parts > 1 else [])


def test_small_matrices_are_not_cut(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "bmm", None)
    blas.product(random(1, 24), random(64, 24))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24), (2, 3, 24)])
def test_the_layer_is_the_ordinary_one(cut_everything, shape):
    cut_everything(2)
    layer, ordinary = blas.Linear(24, 64).double(), torch.nn.Linear(24, 64).double()
    ordinary.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(random(*shape)), ordinary(random(*shape)))


def test_loaded_models_are_laid_out_and_stay_tied():
    model = pretrained.load("draft").model
    head, first = model.lm_head.weight, model.model.layers[0].mlp
    assert head is model.model.embed_tokens.weight and head.stride() == (1, len(head))
    assert first.gate_proj.weight.stride() == (1, len(first.gate_proj.weight))
    assert first.down_proj.weight.is_contiguous()
    assert pretrained.load("draft", dtype=torch.bfloat16).model.lm_head.weight.is_contiguous()
