"""The divergence of a student from its teacher over a large vocabulary, whose logits never exist in full.

At each of N positions, with z and t the logits of student and teacher, q = softmax(z / T), p = softmax(t / T)
and q₁ = softmax(z), the loss is (1 − w) T² D + w (−ln q₁[label]), and its gradient by D:

    forward KL        D = Σ p ln(p / q)                       dL/dz = T (q − p)
    reverse KL        D = Σ q ln(q / p)                       dL/dz = T q ∘ (ln(q / p) − D)
    Jensen–Shannon    D = β Σ p ln(p / m) + (1 − β) S         dL/dz = (1 − β) T q ∘ (ln(q / m) − S)
                      m = β p + (1 − β) q,  S = Σ q ln(q / m)
    hard labels                                               dL/dz = q₁ − onehot(label)

(Hinton et al. 2015, section 2; Gu et al. 2024, MiniLLM; Agarwal et al. 2024, GKD, section 2.) For 8192
positions of 128k tokens one matrix of logits takes 2 GiB in 16 bits, and the usual operations hold a dozen.

But a position needs only its own logits. So they are made for some rows at a time: two products of the
library, a kernel that reads them, adds up the loss and writes dL/dz where z was, and two products by which
dL/dz becomes the gradients of hidden states and head. The gradients are thus made in the forward pass, as
nothing else needs the loss first; the backward pass only scales them (Hsu et al. 2024, Liger Kernel, section
3.2). What is held is two chunks of logits and the gradients themselves.

Letters: N positions, V vocabulary, Ds and Dt the widths of student and teacher.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.divergence_arguments import Objective, check_divergence, check_tokens, product_dtype

CHUNKS = 4  # each reads and writes the head's whole gradient once more, so they are to be few
# Logits of a chunk: enough to keep the library's products at their speed, and not beyond 1 GiB in 16 bits.
LEAST_LOGITS, MOST_LOGITS = 2**27, 2**29
# Numbers of a product's result that fill a large GPU, 128 tiles of 128 × 256: the hidden states' gradient has
# few columns, and leaves half of the chip idle if it has few rows as well.
FULL = 2**22
ROW_TILE = 128  # of the library's products; a chunk is a multiple of it
ROUNDINGS = 8  # of a sum in 16 bits; more chunks than that are added up in fp32
ALIGNED = 64  # numbers: rows of logits begin at multiples of it, whatever V is, and are read 16 bytes at once


def vocabulary_divergence_reference(
    student_hidden: Float[Tensor, "N Ds"],
    student_head: Float[Tensor, "V Ds"],
    teacher_hidden: Float[Tensor, "N Dt"],
    teacher_head: Float[Tensor, "V Dt"],
    labels: Int[Tensor, " N"] | None,
    objective: Objective,
) -> Float[Tensor, ""]:
    """What `vocabulary_divergence` computes, with all logits, in fp32 or wider behind the products."""
    o = objective
    student = F.linear(student_hidden, student_head)
    teacher = F.linear(teacher_hidden, teacher_head).detach()
    student, teacher = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student, teacher))
    log_q, log_p = ((x / o.temperature).log_softmax(-1) for x in (student, teacher))
    if o.kind == "forward_kl":
        losses = _kl(log_p, log_q)
    elif o.kind == "reverse_kl":
        losses = _kl(log_q, log_p)
    else:
        log_m = torch.logaddexp(log_p + math.log(o.beta), log_q + math.log1p(-o.beta))
        losses = o.beta * _kl(log_p, log_m) + (1 - o.beta) * _kl(log_q, log_m)
    losses = (1 - o.hard_weight) * o.temperature**2 * losses
    if labels is None:
        return losses.mean()
    if o.hard_weight:
        hard = F.cross_entropy(student, labels, ignore_index=o.ignore_index, reduction="none")
        losses = losses + o.hard_weight * hard
    counted = labels != o.ignore_index
    return losses.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return F.kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1)


def vocabulary_divergence(
    student_hidden: Float[Tensor, "N Ds"],
    student_head: Float[Tensor, "V Ds"],
    teacher_hidden: Float[Tensor, "N Dt"],
    teacher_head: Float[Tensor, "V_teacher Dt"],
    labels: Int[Tensor, " N"] | None = None,
    *,
    divergence: str = "forward_kl",
    beta: int | float = 0.5,
    temperature: int | float = 1.0,
    hard_weight: int | float = 0.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, ""]:
    """The loss in nats, the mean over positions that count, with gradients of the student's two tensors.

    Logits are in the dtype of the hidden states, or in that of autocast; all behind them is in fp32. The
    gradient of the head is added up from chunk to chunk in the head's own dtype, by products that sum in fp32
    and round once a chunk: an fp32 parameter loses nothing, and one in 16 bits little more than by the last
    rounding, which it cannot escape, while fp32 would take twice the memory and traffic. Where these would be
    more than `ROUNDINGS`, the sum is kept in fp32 until the end. Gradients can be taken once, and are made in
    the forward pass: under `torch.no_grad()` only the loss is.

    Args:
        student_head, teacher_head: the matrices that make logits; the teacher gets no gradient.
        labels: the tokens that follow, in int64; None lets all positions count. Where none counts, the loss
            is 0. A label that is no token makes the loss NaN on a GPU, which looks at it too late to raise.
        divergence, beta, temperature, hard_weight, ignore_index: as in `Objective`.
        chunk_rows: positions whose logits exist at a time; None takes `best_chunk_rows`. The reference holds
            all of them.

    Raises:
        ValueError: vocabularies, shapes, dtypes or devices that do not fit, numbers out of their range, hard
            labels with a weight that are not given, or a backend that cannot run.
        RuntimeError: gradients are taken for the second time.
    """
    objective = Objective(divergence, beta, temperature, hard_weight, ignore_index)
    given = (student_hidden, student_head, teacher_hidden, teacher_head, labels, objective)
    check_divergence(*given, chunk_rows)
    dtype = product_dtype(student_hidden)
    if resolve(backend, student_hidden.device, dtype) == "reference":
        check_tokens(labels, len(student_head), ignore_index)
        return vocabulary_divergence_reference(*given)
    wanted = tuple(torch.is_grad_enabled() and x.requires_grad for x in (student_hidden, student_head))
    return VocabularyDivergence.apply(*given, chunk_rows, wanted)


def best_chunk_rows(rows: int, vocab_size: int, hidden_size: int) -> int:
    """A quarter of the rows, unless that is too few for the library's products, or too much memory.

    Args:
        hidden_size: of the student.
    """
    filling = min(math.ceil(FULL / hidden_size), math.ceil(rows / 2))
    enough = max(math.ceil(rows / CHUNKS), LEAST_LOGITS // vocab_size, filling)
    chosen = min(enough, MOST_LOGITS // vocab_size)
    return min(max(math.ceil(chosen / ROW_TILE), 1) * ROW_TILE, rows)


def peak_bytes(
    rows: int, vocab_size: int, hidden_size: int, *, chunk_rows: int | None = None, item_bytes: int = 2
) -> int:
    """What the kernel's way holds at most beside its arguments: two chunks of logits, and the gradients.

    Args:
        hidden_size: of the student.
        item_bytes: of a number of hidden states, head and logits.
    """
    chunk = min(chunk_rows or best_chunk_rows(rows, vocab_size, hidden_size), rows)
    head_bytes = max(item_bytes, 4) if math.ceil(rows / chunk) > ROUNDINGS else item_bytes
    logits = 2 * chunk * _stride(vocab_size) * item_bytes
    return logits + vocab_size * hidden_size * head_bytes + rows * hidden_size * item_bytes + 4 * rows


class VocabularyDivergence(torch.autograd.Function):
    """Loss and gradients at once, whose arguments have been checked."""

    @staticmethod
    def forward(
        ctx,
        student_hidden: Tensor,
        student_head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        labels: Tensor | None,
        objective: Objective,
        chunk_rows: int | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.dtypes = student_hidden.dtype, student_head.dtype
        counted = len(student_hidden)
        if labels is not None:
            labels = labels.contiguous()
            counted = (labels != objective.ignore_index).sum().clamp(min=1)
        tensors = (student_hidden, student_head, teacher_hidden, teacher_head)
        cast = [x.to(product_dtype(x)) for x in tensors]  # products with out=... know of no autocast
        losses, *ctx.grads = _by_chunks(*cast, labels, objective, chunk_rows, wanted, student_head.dtype)
        ctx.counted, ctx.taken = counted, False
        return losses.sum() / counted

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        from llmcourse.kernels.vocabulary_divergence_triton import scaled

        if ctx.taken:
            raise RuntimeError(
                "gradients of vocabulary_divergence can be taken once, since they are scaled where they lie; "
                "call it again for the next ones"
            )
        ctx.taken, scale = True, (grad_loss / ctx.counted).float()
        grads = [x if x is None else scaled(x, scale, d) for x, d in zip(ctx.grads, ctx.dtypes, strict=True)]
        ctx.grads = [None, None]
        return *grads, None, None, None, None, None, None


def _by_chunks(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None,
    objective: Objective,
    chunk_rows: int | None,
    wanted: tuple[bool, bool],
    parameter: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss of each position, and what is wanted of the gradients of their sum.

    Args:
        parameter: the dtype in which the head is kept.
    """
    from llmcourse.kernels.vocabulary_divergence_triton import launch

    (rows, hidden_size), vocab_size = student_hidden.shape, len(student_head)
    chunk = min(chunk_rows or best_chunk_rows(rows, vocab_size, hidden_size), rows)
    student_logits, teacher_logits = (
        x.new_empty(chunk, _stride(vocab_size)) for x in (student_hidden, teacher_hidden)
    )
    losses = torch.empty(rows, dtype=torch.float32, device=student_hidden.device)
    plain = parameter == student_head.dtype and math.ceil(rows / chunk) <= ROUNDINGS
    grad_hidden = torch.empty_like(student_hidden) if wanted[0] else None
    grad_head = (
        torch.empty_like(student_head, dtype=parameter if plain else torch.float32) if wanted[1] else None
    )
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        z, t = (x[: part.stop - start, :vocab_size] for x in (student_logits, teacher_logits))
        torch.mm(student_hidden[part], student_head.T, out=z)
        torch.mm(teacher_hidden[part], teacher_head.T, out=t)
        launch(z, t, None if labels is None else labels[part], losses[part], objective, any(wanted))
        if grad_hidden is not None:
            torch.mm(z, student_head, out=grad_hidden[part])
        if grad_head is not None:
            _add_product(grad_head, z.T, student_hidden[part], anew=start == 0)
    return losses, grad_hidden, grad_head


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, anew: bool) -> None:
    """total ← total + a b, or a b anew, rounded once."""
    beta = 0 if anew else 1
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif total.device.type == "cpu":  # whose products have one dtype
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)


def _stride(vocab_size: int) -> int:
    return math.ceil(vocab_size / ALIGNED) * ALIGNED
