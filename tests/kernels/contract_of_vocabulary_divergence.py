"""The contract of `vocabulary_divergence`: the reference's loss and gradients, whatever the chunks and tiles.

Run beside `contract.py`. Held to the reference in fp64; in 16 bits the logits are rounded before anything is
made of them, and so are dL/dz and the sums, by the kernel as by autograd.

A GPU's compiler makes one instruction of a product and the sum behind it, which rounds once, and may so part
two numbers that are equal where each is rounded. The interpreter rounds both; told to, once here too.
"""

import math

import numpy as np
import pytest
import torch

from llmcourse.kernels import vocabulary_divergence as module
from llmcourse.kernels import vocabulary_divergence_triton as kernels
from llmcourse.kernels.divergence_arguments import Objective
from llmcourse.kernels.vocabulary_divergence import vocabulary_divergence
from tests.kernels.contract import DEVICE, DTYPES, seeded  # noqa: F401

KINDS = (
    ("forward_kl", 0.5),
    ("reverse_kl", 0.5),
    ("jensen_shannon", 0.5),
    ("jensen_shannon", 0.1),
    ("jensen_shannon", 0),
    ("jensen_shannon", 1),
)
SETTINGS = ((1, 0.0), (2.5, 0.0), (1, 0.3), (0.7, 0.6), (2.0, 1.0))  # temperature and weight of hard labels
SMALL = kernels.RowTile(warps=1, lanes=16, repeats=2, stages=2)  # so that a row is many tiles
NAMES = ("loss", "grad_hidden", "grad_head")


def draw(rows: int, vocab_size: int, dtype: torch.dtype = torch.float32, spread: float = 1.0):
    """Hidden states and heads, student's (16 wide) and teacher's (24), and labels, one of them left out.

    Drawn on the CPU: the same on every device.
    """
    shapes = ((rows, 16), (vocab_size, 16), (rows, 24), (vocab_size, 24))
    tensors = [
        (spread * torch.randn(shape) / shape[1] ** 0.25).to(DEVICE, dtype).contiguous() for shape in shapes
    ]
    labels = torch.randint(vocab_size, (rows,)).to(DEVICE)
    labels[rows // 2 : rows // 2 + (rows > 1)] = -100
    return *tensors, labels


def found(tensors, labels, *, times: float = 1.0, **given) -> dict[str, torch.Tensor]:
    """The loss, and the gradients of `times` the loss."""
    hidden, head, *teacher = (x.detach().clone() for x in tensors)
    leaves = hidden.requires_grad_(), head.requires_grad_()
    loss = vocabulary_divergence(*leaves, *teacher, labels, **given)
    grads = torch.autograd.grad(times * loss, leaves)
    return dict(zip(NAMES, (loss.detach(), *grads), strict=True))


def check_all(ours, tensors, labels, dtype=torch.float32, **given) -> None:
    """Within twice what the reference is off in this dtype, and a few roundings.

    A divergence is a difference of logarithms that are larger than itself, times T²; the gradient of reverse
    KL is one of numbers as large as the divergence.
    """
    truth = found([x.double() for x in tensors], labels, backend="reference", **given)
    theirs = found(tensors, labels, backend="reference", **given)
    eps = torch.finfo(dtype).eps
    least = {"loss": 4 * given.get("temperature", 1) ** 2}
    for name, exact in truth.items():
        assert torch.isfinite(ours[name]).all(), name
        assert ours[name].dtype == theirs[name].dtype, name
        allowed = (
            2 * (theirs[name].double() - exact).abs().max()
            + 16 * eps * exact.abs().max()
            + least.get(name, 0.25 + 8 * truth["loss"]) * eps
        )
        assert (ours[name].double() - exact).abs().max() <= allowed, name


@pytest.fixture(params=["many tiles", "as launched"])
def tile(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(kernels, "row_tile", lambda item_bytes: SMALL)


@pytest.fixture(params=["rounded apart", "rounded together"] if DEVICE.type == "cpu" else ["as compiled"])
def rounding(request, monkeypatch):
    """How products are rounded that something is added to, or subtracted from, or that are subtracted."""
    if request.param != "rounded together":
        return
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    multiply, add, subtract = Builder.create_fmul, Builder.create_fadd, Builder.create_fsub

    def multiplied(builder, a, b):
        product = multiply(builder, a, b)
        if product.data.dtype == np.float32:  # whose products fit a float64
            product.set_attr("unrounded", a.data.astype(np.float64) * b.data)
        return product

    def together(rounding_apart, operation):
        def added(builder, a, b):
            result = rounding_apart(builder, a, b)
            if "unrounded" in a.attr:
                result.data = operation(a.attr["unrounded"], b.data).astype(np.float32)
            elif "unrounded" in b.attr:
                result.data = operation(a.data, b.attr["unrounded"]).astype(np.float32)
            return result

        return added

    monkeypatch.setattr(Builder, "create_fmul", multiplied)
    monkeypatch.setattr(Builder, "create_fadd", together(add, np.add))
    monkeypatch.setattr(Builder, "create_fsub", together(subtract, np.subtract))


@pytest.mark.parametrize(("divergence", "beta"), KINDS)
@pytest.mark.parametrize(("temperature", "hard_weight"), SETTINGS)
def test_loss_and_gradients_are_those_of_the_reference(
    monkeypatch, rounding, divergence, beta, temperature, hard_weight
):
    monkeypatch.setattr(kernels, "row_tile", lambda item_bytes: SMALL)
    *tensors, labels = draw(5, 97)
    given = {
        "divergence": divergence,
        "beta": beta,
        "temperature": temperature,
        "hard_weight": hard_weight,
        "times": 3.0,
    }
    check_all(found(tensors, labels, chunk_rows=2, backend="triton", **given), tensors, labels, **given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize(("rows", "vocab_size", "chunk_rows"), [(1, 1, None), (7, 64, 3), (17, 128, 12)])
def test_any_shape_and_dtype(monkeypatch, dtype, divergence, rows, vocab_size, chunk_rows):
    monkeypatch.setattr(kernels, "row_tile", lambda item_bytes: SMALL)
    *tensors, labels = draw(rows, vocab_size, dtype)
    given = {"divergence": divergence, "temperature": 2.0, "hard_weight": 0.25}
    ours = found(tensors, labels, chunk_rows=chunk_rows, backend="triton", **given)
    check_all(ours, tensors, labels, dtype, **given)


def test_a_row_of_several_tiles_as_they_are_launched():
    *tensors, labels = draw(3, 20011)
    for divergence in ("forward_kl", "jensen_shannon"):
        given = {"divergence": divergence, "hard_weight": 0.5, "temperature": 1.5}
        check_all(found(tensors, labels, backend="triton", **given), tensors, labels, **given)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_far_apart_and_sharp_distributions_stay_finite_and_right(tile, rounding, divergence):
    """Logits of hundreds: shares of a hundred orders of magnitude, most of them 0 in fp32."""
    *tensors, labels = draw(4, 90, spread=6.0)
    given = {"divergence": divergence, "temperature": 0.5}
    ours = found(tensors, labels, backend="triton", **given)
    check_all(ours, tensors, labels, **given)
    if divergence == "jensen_shannon":
        assert 0.5**2 * math.log(2) * 0.9 < ours["loss"] <= 0.5**2 * math.log(2) * 1.0001


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_logits_of_hundreds_that_are_alike_lose_no_digits_from_tile_to_tile(
    monkeypatch, rounding, divergence
):
    """A tenth of the logits are the largest; each is exact in fp32, and its product with bits is not."""
    monkeypatch.setattr(kernels, "row_tile", lambda item_bytes: SMALL)
    *tensors, _ = draw(3, 1000)
    for hidden, head in (tensors[:2], tensors[2:]):
        head[:, 0] = 300 - torch.randint(10, (1000,), device=DEVICE) / 8
        hidden.zero_()
        hidden[:, 0] = torch.tensor([1, 1.5, -1])
    for temperature in (0.7, 2.3):
        given = {"divergence": divergence, "temperature": temperature}
        check_all(found(tensors, None, backend="triton", **given), tensors, None, **given)


def test_a_student_that_agrees_has_nothing_to_learn(tile):
    hidden, head, *_, labels = draw(4, 90)
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        ours = found((hidden, head, hidden, head), labels, divergence=divergence, backend="triton")
        assert all(value.abs().max() < 1e-6 for value in ours.values())


def test_positions_that_are_left_out_count_in_neither_loss_nor_gradient(tile):
    *tensors, labels = draw(6, 50)
    rest = labels != -100
    given = {"divergence": "jensen_shannon", "hard_weight": 0.5, "backend": "triton"}
    whole = found(tensors, labels, **given)
    hidden, head, teacher, teacher_head = tensors
    alone = found((hidden[rest], head, teacher[rest], teacher_head), labels[rest], **given)
    torch.testing.assert_close(whole["loss"], alone["loss"])
    torch.testing.assert_close(whole["grad_head"], alone["grad_head"])
    torch.testing.assert_close(whole["grad_hidden"][rest], alone["grad_hidden"])
    assert not whole["grad_hidden"][~rest].any()
    nothing = found(tensors, torch.full_like(labels, -100), **given)
    assert not any(value.any() for value in nothing.values())
    other = found(tensors, labels.where(rest, 7), ignore_index=7, **given)
    assert not other["grad_hidden"][labels.where(rest, 7) == 7].any()


def test_without_labels_every_position_counts(tile):
    *tensors, _ = draw(5, 50)
    check_all(found(tensors, None, backend="triton"), tensors, None)


def test_only_what_is_wanted_is_made(tile, monkeypatch):
    *tensors, labels = draw(5, 50)
    asked = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *given: (asked.append(given[-1]), launch(*given)))
    whole = found(tensors, labels, backend="triton")
    for wanted in ((True, False), (False, True)):
        given = [x.detach().clone().requires_grad_(w) for x, w in zip(tensors[:2], wanted, strict=True)]
        loss = vocabulary_divergence(*given, *tensors[2:], labels, backend="triton")
        (grad,) = torch.autograd.grad(loss, [x for x in given if x.requires_grad])
        torch.testing.assert_close(grad, whole["grad_hidden" if wanted[0] else "grad_head"])
    with torch.no_grad():
        loss = vocabulary_divergence(*given, *tensors[2:], labels, backend="triton")
    torch.testing.assert_close(loss, whole["loss"])
    assert asked == [True, True, True, False] and not loss.requires_grad


def test_the_teacher_gets_no_gradient_and_nobody_a_second_one(tile):
    *tensors, labels = draw(5, 50)
    leaves = [x.requires_grad_() for x in tensors]
    loss = vocabulary_divergence(*leaves, labels, backend="triton")
    loss.backward(retain_graph=True)
    assert leaves[0].grad is not None and leaves[2].grad is leaves[3].grad is None
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


def test_a_label_that_is_no_token_shows():
    *tensors, labels = draw(5, 50)
    for wrong in (50, -1):
        labels[0] = wrong
        assert vocabulary_divergence(*tensors, labels, hard_weight=0.5, backend="triton").isnan()


def test_a_logit_that_is_no_number_shows(tile):
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        for index in range(4):
            *tensors, labels = draw(5, 50)
            tensors[index][0, 0] = math.nan
            assert vocabulary_divergence(*tensors, labels, divergence=divergence, backend="triton").isnan()


def test_many_chunks_in_16_bits_are_added_up_in_fp32(monkeypatch):
    """A large first chunk, and many that are each too small to change a sum of its size in 16 bits."""
    dtype, rows = torch.float16, 20
    hidden, head, teacher, teacher_head, _ = draw(rows, 8, dtype)
    hidden[0] *= 30
    tensors = hidden, head, teacher, teacher_head
    truth = found([x.double() for x in tensors], None, backend="reference")["grad_head"]

    def off(roundings: int) -> float:
        monkeypatch.setattr(module, "ROUNDINGS", roundings)
        ours = found(tensors, None, chunk_rows=1, backend="triton")["grad_head"]
        assert ours.dtype == dtype
        return (ours.double() - truth).norm().item()

    assert off(module.ROUNDINGS) < off(rows)


def test_parameters_in_fp32_under_autocast_have_their_gradients_in_fp32(tile):
    dtype = torch.float16 if DEVICE.type == "cpu" else torch.bfloat16
    *tensors, labels = draw(9, 60)
    given = {"divergence": "reverse_kl", "chunk_rows": 2}
    with torch.autocast(DEVICE.type, dtype):
        ours = found(tensors, labels, backend="triton", **given)
        theirs = found(tensors, labels, backend="reference", **given)
    assert ours["grad_hidden"].dtype == ours["grad_head"].dtype == torch.float32
    rounded = [x.to(dtype) for x in tensors]
    truth = found([x.double() for x in rounded], labels, backend="reference", **given)
    for name, exact in truth.items():
        allowed = (
            2 * (theirs[name].double() - exact).abs().max() + 4 * torch.finfo(dtype).eps * exact.abs().max()
        )
        assert (ours[name].double() - exact).abs().max() <= allowed


@pytest.mark.parametrize(
    "planted",
    [
        "no T² at all",
        "the other way round",
        "another beta",
        "labels softened too",
        "a label's neighbour",
        "sum",
    ],
)
def test_a_wrong_loss_is_seen(planted):
    *tensors, labels = draw(5, 50)
    given = {"divergence": "jensen_shannon", "beta": 0.2, "temperature": 2.0, "hard_weight": 0.5}
    wrong, wrong_labels, times = dict(given), labels, 1.0
    if planted == "no T² at all":
        wrong["hard_weight"], times = given["hard_weight"], 0.5
    elif planted == "the other way round":
        wrong["divergence"] = "reverse_kl"
    elif planted == "another beta":
        wrong["beta"] = 0.8
    elif planted == "labels softened too":
        tensors[0], wrong["temperature"] = tensors[0] / 2, 1.0
    elif planted == "a label's neighbour":
        wrong_labels = (labels + 1).where(labels >= 0, labels) % 50
    else:
        times = 4.0
    ours = found(tensors, wrong_labels, times=times, backend="triton", **wrong)
    *tensors, labels = (torch.manual_seed(0), draw(5, 50))[1]
    with pytest.raises(AssertionError):
        check_all(ours, tensors, labels, **given)


def test_what_the_kernel_leaves_alone_and_what_it_fills():
    """Logits without a gradient stay; with one, the memory behind the last token holds zeros, not refuse."""
    logits = torch.randn(3, 64, device=DEVICE)
    before, losses = logits.clone(), torch.empty(3, device=DEVICE)
    teacher = torch.randn(3, 64, device=DEVICE)
    logits[:, 50:] = before[:, 50:] = teacher[:, 50:] = math.inf
    kernels.launch(logits[:, :50], teacher[:, :50], None, losses, Objective(), False, SMALL)
    assert torch.equal(logits, before) and torch.isfinite(losses).all()
    again = torch.empty_like(losses)
    kernels.launch(logits[:, :50], teacher[:, :50], None, again, Objective(), True, SMALL)
    # Compiled twice, with and without a gradient: products and sums may be rounded together in one of them.
    torch.testing.assert_close(again, losses, rtol=2**-21, atol=0)
    assert not logits[:, 50:].any()
    torch.testing.assert_close(logits.sum(1), torch.zeros(3, device=DEVICE), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"warps": 3}, "warps must be one of"),
        ({"lanes": 24}, "lanes must be a power of 2 of at least 16, got 24"),
        ({"repeats": 3}, "repeats must be a power of 2 of at least 1, got 3"),
        ({"stages": 0}, "stages must be an integer of at least 1, got 0"),
    ],
)
def test_a_tile_that_no_program_can_have_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        kernels.RowTile(**{"warps": 4, "lanes": 16, "repeats": 1, "stages": 1, **numbers})
