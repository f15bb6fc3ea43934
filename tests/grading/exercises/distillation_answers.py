"""Right answers to lab 6 by other roads: PyTorch's losses, autograd, plain loops, float64."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence


def soften_in_double(logits, temperature):
    log_p = F.log_softmax(logits.double() / temperature, dim=1)
    p = log_p.exp()
    return p.float(), -torch.where(p > 0, p * log_p, 0.0).sum(1).float()


def soften_by_hand(logits, temperature):
    shifted = (logits - logits.max(dim=-1, keepdim=True).values) / temperature
    weights = torch.exp(shifted)
    p = weights / weights.sum(dim=-1, keepdim=True)
    return p, -torch.special.xlogy(p, p).sum(dim=-1)


def soften_by_torch(logits, temperature):
    p = torch.softmax(logits / temperature, -1)
    entropy = [sum(-x * math.log(x) for x in row if x > 0) for row in p.tolist()]
    return p, torch.tensor(entropy)


def kd_by_torch(student_logits, teacher_logits, temperature, mask):
    """PyTorch's divergence and autograd, of the positions that count."""
    z = student_logits.clone().requires_grad_(True)
    log_q = F.log_softmax(z[mask] / temperature, dim=-1)
    p = F.softmax(teacher_logits[mask] / temperature, dim=-1)
    loss = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
    loss.backward()
    return loss.item(), z.grad


def kd_by_rows(student_logits, teacher_logits, temperature, mask):
    """Row after row, in float64."""
    gradient, loss, count = torch.zeros_like(student_logits), 0.0, int(mask.sum())
    for n in mask.nonzero()[:, 0].tolist():
        log_q, log_p = (
            (z[n].double() / temperature).log_softmax(0) for z in (student_logits, teacher_logits)
        )
        p = log_p.exp()
        loss += sum(a.item() * (b - c).item() for a, b, c in zip(p, log_p, log_q, strict=True) if a > 0)
        gradient[n] = temperature * (log_q.exp() - p) / count
    return temperature**2 * loss / count, gradient


def kd_less_entropy(student_logits, teacher_logits, temperature, mask):
    """The cross-entropy with soft labels, less the entropy of these."""
    p = torch.softmax(teacher_logits / temperature, -1)
    z = student_logits.detach().clone().requires_grad_()
    each = F.cross_entropy(z / temperature, p, reduction="none") - torch.special.entr(p).sum(-1)
    loss = temperature**2 * torch.where(mask, each, 0).sum() / mask.sum()
    return float(loss.detach()), torch.autograd.grad(loss, z)[0]


def reverse_by_autograd(student_logits, teacher_logits):
    z = student_logits.clamp(min=-1e4).requires_grad_()
    log_q = z.log_softmax(-1)
    loss = (log_q.exp() * (log_q - teacher_logits.log_softmax(-1))).sum(-1).mean()
    loss.backward()
    return loss.item(), z.grad


def reverse_by_torch(student_logits, teacher_logits):
    """The same function of PyTorch's with its arguments swapped, in float64."""
    z = student_logits.double().clamp(min=-1e5).requires_grad_()
    log_p = teacher_logits.double().log_softmax(-1)
    loss = F.kl_div(log_p, z.log_softmax(-1), reduction="batchmean", log_target=True)
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient.float()


def reverse_by_distributions(student_logits, teacher_logits):
    """PyTorch's distributions for the loss; the gradient by the Jacobian of the softmax."""
    q, log_p = student_logits.double().softmax(-1), teacher_logits.double().log_softmax(-1)
    loss = kl_divergence(
        Categorical(logits=student_logits.double().clamp(min=-1e5)),
        Categorical(logits=teacher_logits.double()),
    )
    slope = torch.where(q > 0, q.clamp(min=1e-300).log() - log_p + 1, 0.0)
    jacobian = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    return loss.mean().item(), ((jacobian @ slope[..., None])[..., 0] / len(q)).float()


def mixed_by_torch(student_logits, teacher_logits, labels, hard_weight, temperature):
    kept = labels != -100
    if not kept.any():
        return 0.0, 0.0, 0.0
    hard = F.cross_entropy(student_logits, labels, ignore_index=-100)
    log_q, log_p = ((z[kept] / temperature).log_softmax(-1) for z in (student_logits, teacher_logits))
    soft = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    loss = torch.lerp(soft, hard, hard_weight)
    return loss.item(), hard.item(), soft.item()


def mixed_with_one_hot(student_logits, teacher_logits, labels, hard_weight, temperature):
    """A weight of 0 for positions without a label."""
    weight = labels.ne(-100).double()
    count = weight.sum().clamp(min=1)
    wanted = F.one_hot(labels.clamp(min=0), student_logits.shape[1])
    hard = -(student_logits.double().log_softmax(1) * wanted).sum(1) @ weight / count
    p = (teacher_logits.double() / temperature).softmax(1)
    q = (student_logits.double() / temperature).softmax(1)
    soft = temperature * temperature * (p * (p / q).log()).sum(1) @ weight / count
    return float(hard_weight * hard + (1 - hard_weight) * soft), float(hard), float(soft)


def mixed_by_rows(student_logits, teacher_logits, labels, hard_weight, temperature):
    hards, softs = [], []
    for z, teacher, label in zip(student_logits, teacher_logits, labels.tolist(), strict=True):
        if label >= 0:
            hards.append((z.logsumexp(0) - z[label]).item())
            both = (Categorical(logits=x.double() / temperature) for x in (teacher, z))
            softs.append(temperature**2 * kl_divergence(*both).item())
    if not hards:
        return (0.0,) * 3
    hard, soft = statistics.fmean(hards), statistics.fmean(softs)
    return hard_weight * hard + (1 - hard_weight) * soft, hard, soft


def top_k_by_mask(student_logits, ids, log_probs):
    """The bucket as what is left of a mask, in logits."""
    ids, log_p = ids.to(torch.int64), log_probs.to(torch.float32)
    left = torch.ones_like(student_logits, dtype=torch.bool).scatter(1, ids, False)
    total = student_logits.logsumexp(1)
    log_q = torch.gather(student_logits, 1, ids) - total[:, None]
    log_q_rest = torch.where(left, student_logits, -torch.inf).logsumexp(1) - total
    rest = (1 - log_p.exp().sum(1)).clamp_min(0)
    return (log_p.exp() * (log_p - log_q)).sum(1) + torch.xlogy(rest, rest) - rest * log_q_rest


def top_k_by_torch(student_logits, ids, log_probs):
    """PyTorch's divergence of k + 1 numbers."""
    index, p = ids.long(), log_probs.double().exp()
    log_q = student_logits.double().log_softmax(-1)
    rest = (1 - p.sum(1, keepdim=True)).clamp(min=0)
    others = log_q.scatter(1, index, -math.inf).logsumexp(1, keepdim=True)
    both = torch.cat((log_q.gather(1, index), others), 1), torch.cat((p, rest), 1)
    return F.kl_div(*both, reduction="none").sum(1).float()


def top_k_by_rows(student_logits, ids, log_probs):
    losses = []
    for z, tokens, stored in zip(
        student_logits.double().tolist(), ids.tolist(), log_probs.tolist(), strict=True
    ):
        top = max(z)
        weights = [math.exp(x - top) for x in z]
        total, p = sum(weights), [math.exp(x) for x in stored]
        q = [weights[token] / total for token in tokens]
        q_rest = sum(w for token, w in enumerate(weights) if token not in tokens) / total
        rest = 1 - sum(p)
        loss = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        losses.append(loss + (rest * math.log(rest / q_rest) if rest > 0 else 0.0))
    return torch.tensor(losses)


def projection_by_autograd(student_hidden, teacher_hidden, weight, lengths):
    phi = weight.clone().requires_grad_(True)
    texts = range(len(lengths))
    student = torch.cat([student_hidden[b, : lengths[b]] for b in texts])
    teacher = torch.cat([teacher_hidden[b, : lengths[b]] for b in texts])
    loss = F.mse_loss(F.linear(student, phi), teacher)
    loss.backward()
    return loss.item(), phi.grad


def projection_with_where(student_hidden, teacher_hidden, weight, lengths):
    """Zeros in the padding, before anything is computed."""
    mask = (torch.arange(student_hidden.shape[1])[None] < lengths[:, None])[..., None]
    h_s, h_t = (torch.where(mask, h, 0.0) for h in (student_hidden, teacher_hidden))
    r = torch.einsum("btc,dc->btd", h_s, weight) - h_t
    count = int(lengths.sum()) * weight.shape[0]
    return float((r * r).sum()) / count, 2 / count * torch.einsum("btd,btc->dc", r, h_s)


def projection_by_positions(student_hidden, teacher_hidden, weight, lengths):
    """A sum that grows position by position, in float64."""
    loss, gradient, phi = 0.0, torch.zeros_like(weight).double(), weight.double()
    for b, length in enumerate(lengths.tolist()):
        for t in range(length):
            h = student_hidden[b, t].double()
            r = phi @ h - teacher_hidden[b, t]
            loss += (r @ r).item()
            gradient += 2 * torch.outer(r, h)
    count = lengths.sum().item() * len(weight)
    return loss / count, (gradient / count).float()


def step_by_backward(adapter, head, parts, temperature, max_norm, lr):
    """As a loop of training has it: backward for each part, clip_grad_norm_, an optimizer."""
    weights = [torch.nn.Parameter(w.clone()) for w in (adapter, head)]
    optimizer = torch.optim.SGD(weights, lr=lr)
    size, total = sum(len(h) for h, _ in parts), 0.0
    for states, teacher_states in parts:
        with torch.no_grad():
            p = (F.linear(teacher_states, weights[1]) / temperature).softmax(-1)
        logits = F.linear(F.linear(states, weights[0]), weights[1])
        divergence = F.kl_div((logits / temperature).log_softmax(-1), p, reduction="sum")
        loss = temperature**2 * divergence / size
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    optimizer.step()
    return total, norm.item(), *(w.detach() for w in weights)


def step_at_once(adapter, head, parts, temperature, max_norm, lr):
    """All parts as one: that is what accumulation is to give."""
    states, teacher_states = (torch.cat(each) for each in zip(*parts, strict=True))
    a, h = adapter.clone().requires_grad_(), head.clone().requires_grad_()
    log_p = (teacher_states @ head.T / temperature).log_softmax(-1)
    log_q = (states @ a.T @ h.T / temperature).log_softmax(-1)
    loss = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    gradients = torch.autograd.grad(loss, (a, h))
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    factor = lr * max_norm / max(norm, max_norm)
    return loss.item(), norm, adapter - factor * gradients[0], head - factor * gradients[1]


def step_by_formulas(adapter, head, parts, temperature, max_norm, lr):
    """No autograd: the gradient of the logits is T (q − p) / N."""
    wide, loss = [adapter.double(), head.double()], 0.0
    to_adapter, to_head = (torch.zeros_like(w) for w in wide)
    size = sum(len(h) for h, _ in parts)
    for states, teacher_states in ((x.double(), y.double()) for x, y in parts):
        inner = states @ wide[0].T
        log_q = (inner @ wide[1].T / temperature).log_softmax(-1)
        log_p = (teacher_states @ wide[1].T / temperature).log_softmax(-1)
        loss += temperature**2 * (log_p.exp() * (log_p - log_q)).sum().item() / size
        slope = temperature * (log_q.exp() - log_p.exp()) / size
        to_head += slope.T @ inner
        to_adapter += (slope @ wide[1]).T @ states
    norm = torch.stack((to_adapter.norm(), to_head.norm())).norm().item()
    rate = lr * (max_norm / norm if norm > max_norm else 1.0)
    return loss, norm, (wide[0] - rate * to_adapter).float(), (wide[1] - rate * to_head).float()


def calibration_by_bins(probs, labels, num_bins):
    confidence, favourite = probs.max(-1)
    right, table, error = favourite == labels, torch.zeros(num_bins, 3), 0.0
    for m in range(num_bins):
        kept = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if kept.any():
            row = kept.sum().float(), confidence[kept].mean(), right[kept].float().mean()
            table[m] = torch.stack(row)
            error += kept.float().mean().item() * (row[1] - row[2]).abs().item()
    return error, table


def calibration_by_buckets(probs, labels, num_bins):
    """PyTorch's own search for the ends, which belong to what is below them."""
    confidence, ends = probs.amax(1), torch.arange(1, num_bins + 1) / num_bins
    places = torch.bucketize(confidence, ends).clamp(max=num_bins - 1)
    members = F.one_hot(places, num_bins).double()
    counts = members.sum(0)
    right = (probs.argmax(1) == labels).double()
    means = [members.T @ each / counts.clamp(min=1) for each in (confidence.double(), right)]
    error = (counts / len(probs) * (means[1] - means[0]).abs()).sum().item()
    return error, torch.stack((counts, *means), -1).to(torch.float32)


def calibration_by_lists(probs, labels, num_bins):
    found = [[] for _ in range(num_bins)]
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        found[math.ceil(confidence * num_bins) - 1].append((confidence, row.index(confidence) == label))
    rows = [(len(b), *(sum(x) / len(b) for x in zip(*b, strict=True))) if b else (0, 0, 0) for b in found]
    error = sum(n * abs(accuracy - confidence) for n, confidence, accuracy in rows) / len(probs)
    return error, torch.tensor(rows, dtype=torch.float32)


def table_by_lists(losses, k, domains):
    """Python's own statistics."""
    twin, *methods = losses.tolist()
    gains, errors, claims = [], [], []
    for method in methods:
        pairs = [
            [a - b for a, b in zip(own, other, strict=True)] for own, other in zip(twin, method, strict=True)
        ]
        gains.append([statistics.fmean(each) for each in pairs])
        errors.append([statistics.stdev(each) / math.sqrt(len(each)) for each in pairs])
        verdicts = [(g > k * e) - (g < -k * e) for g, e in zip(gains[-1], errors[-1], strict=True)]
        wins, loses = verdicts.count(1), verdicts.count(-1)
        said = "mixed" if wins and loses else "not shown"
        said = "better" if wins >= domains and not loses else said
        claims.append("worse" if loses >= domains and not wins else said)
    return torch.tensor(gains, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64), claims


def table_by_moments(losses, k, domains):
    """The variance by its definition, and claims by dictionary."""
    difference, seeds = losses[0] - losses[1:], losses.shape[2]
    gains = difference.sum(2) / seeds
    errors = ((difference - gains[..., None]).pow(2).sum(2) / (seeds * (seeds - 1))).sqrt()
    verdicts = torch.sign(gains) * (gains.abs() > k * errors)
    names = {(1, 0): "better", (0, 1): "worse"}
    claims = []
    for row in verdicts.tolist():
        wins, loses = row.count(1.0), row.count(-1.0)
        enough = int(wins >= domains), int(loses >= domains)
        claims.append("mixed" if wins * loses else names.get(enough, "not shown"))
    return gains, errors, claims


def table_by_var_mean(losses, k, domains):
    variance, gains = torch.var_mean(losses[:1] - losses[1:], dim=-1)
    errors = torch.sqrt(variance / losses.size(-1))
    wins, loses = ((sign * gains > k * errors).sum(1) for sign in (1, -1))
    claims = ["not shown"] * len(gains)
    for m, (won, lost) in enumerate(zip(wins, loses, strict=True)):
        if won > 0 and lost > 0:
            claims[m] = "mixed"
        elif won >= domains:
            claims[m] = "better"
        elif lost >= domains:
            claims[m] = "worse"
    return gains, errors, claims


STYLES = {
    "06.soften": (soften_in_double, soften_by_hand, soften_by_torch),
    "06.kd_loss": (kd_by_torch, kd_by_rows, kd_less_entropy),
    "06.reverse_kl": (reverse_by_autograd, reverse_by_torch, reverse_by_distributions),
    "06.mixed_loss": (mixed_by_torch, mixed_with_one_hot, mixed_by_rows),
    "06.top_k_teacher": (top_k_by_mask, top_k_by_torch, top_k_by_rows),
    "06.projection_loss": (projection_by_autograd, projection_with_where, projection_by_positions),
    "06.train_step": (step_by_backward, step_at_once, step_by_formulas),
    "06.calibration": (calibration_by_bins, calibration_by_buckets, calibration_by_lists),
    "06.read_table": (table_by_lists, table_by_moments, table_by_var_mean),
}
ROADS = {name: styles[0] for name, styles in STYLES.items()}
