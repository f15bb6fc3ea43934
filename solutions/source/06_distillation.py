# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="06-title"
# # Lab 6 · Distillation
#
# You build what chapter 6 explains. First what a teacher says, its soft labels at a temperature, and the losses that
# compare a student with them: either divergence with its gradient, the teacher beside the labels, and a teacher of
# which only the likeliest tokens are stored. Then what a teacher has worked out, its hidden states; a whole step of
# training; and at the end what may be said of the result: whether a student is as sure as it is right, and which claims
# a table bears out. There are {{ exercises }} exercises for **{{ points }} points**, about {{ minutes }} minutes in
# all. Any laptop will do, nothing is downloaded.
#
# **How to work** is as in [lab 1](../labs/01_decoding.ipynb): run the setup cell, write your answer in place of
# `raise NotImplementedError(…)`, keep the line `# Exercise 06.…` with the function's name and parameters, run the
# check below it, and read its hints. The exercises do not call each other: begin where you like.
#
# **How it is graded**, too. Losses are floats (`.item()`), gradients tensors, whether by a formula or by autograd. An
# answer may use all of PyTorch and Python, but not the course's `distillation` and `kernels`, which is what you build.
#
# **Which is which.** $p$ is the teacher's distribution and $q$ the student's in this lab, as the target's and the
# draft's are in [lab 4](../labs/04_speculative_medusa_early_exit.ipynb). Papers on distillation differ in it; what
# counts is whose probabilities are the weights.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $p,\ q$ | distribution of the teacher; of the student | 教师分布；学生分布 | |
# | $z$ | logits | 对数几率 | `student_logits`, `teacher_logits` |
# | $T,\ p_T$ | temperature; soft labels | 温度；软标签 | `temperature` |
# | $H(p)$ | entropy, in nats | 熵 | `entropy` |
# | $\mathrm{KL}(p \Vert q)$ | forward divergence: the teacher weighs | 前向 KL 散度 | |
# | $\mathrm{KL}(q \Vert p)$ | reverse divergence: the student weighs | 反向 KL 散度 | |
# | $y,\ w$ | hard label; its share in the loss | 硬标签；权重 | `labels`, `hard_weight` |
# | $r$ | the rest, one bucket | 剩余概率 | |
# | | response-based; feature-based | 基于反馈；基于特征 | |
# | $\Phi$ | projection of hidden states | 投影 | `weight` |
# | $M$ | positions that count (a mask) | 掩码 | `mask`, `lengths` |
# | | gradient accumulation; clipping | 梯度累积；梯度裁剪 | `parts`, `max_norm` |
# | ECE | expected calibration error | 期望校准误差 | `ece` |
# | $\bar\delta,\ e$ | mean of paired differences; its standard error | 配对差均值；标准误差 | `gains`, `errors` |

# %% name="06-setup"
import torch

from llmcourse.grading import selfcheck
from llmcourse.grading.selfcheck import check

torch.set_num_threads(1)  # with tensors this small, two threads mostly wait for each other

# %% [markdown] name="06-demos-text"
# **Demonstrations** run your functions on larger inputs: the embedded model `base` as the teacher, `draft` and `small`
# as students, on some source code of Python's library and some English of its manual. They give no points, and need no
# edit. Where one says *predict*, write a number down before you run it; a guess that was wrong is remembered best.

# %% name="06-models" tags=["demo"]
import inspect
import random
from pydoc_data import topics

from llmcourse import pretrained
from llmcourse.grading.lab_view import once_written, points_so_far

numbers = torch.Generator().manual_seed(6)
base, tokenizer = pretrained.load("base", dtype=torch.float32)
students = {name: pretrained.load(name, dtype=torch.float32)[0] for name in ("draft", "small")}
texts = {"code": inspect.getsource(random), "English": topics.topics["exceptions"] + topics.topics["objects"]}
tokens = {kind: torch.tensor(tokenizer.encode_prompt(text)[:257]) for kind, text in texts.items()}


# %% name="06-read" tags=["demo"]
@torch.no_grad()
def read(model, kind="code"):
    """The logits after each of 256 tokens; what came next is tokens[kind][1:]."""
    return model(tokens[kind][None, :-1])[0]


# %% [markdown] name="06-says-text"
# ## What a teacher says

# %% [markdown]
# {{ statement 06.soften }}


# %%
# Exercise 06.soften
def soften(logits, temperature):
    """The distribution at a temperature, and its entropy."""
    ### BEGIN SOLUTION
    probs = (logits / temperature).softmax(dim=-1)
    return probs, -torch.xlogy(probs, probs).sum(dim=-1)
    ### END SOLUTION


# %%
check("06.soften", soften)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.soften", soften, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-soften-text"
# **Demonstration.** What `base` says after each token of either text, at some temperatures: the mean entropy, and how
# much of its mass lies beside its favourite. *Predict*: does twice the temperature make the entropy twice as large?

# %% name="06-soften-demo" tags=["demo"]
with once_written(soften):
    for kind in texts:
        logits = read(base, kind)
        for temperature in (1.0, 2.0, 4.0):
            probs, entropy = soften(logits, temperature)
            beside = 1 - probs.amax(dim=-1).mean()
            print(
                f"{kind:7} T = {temperature:g}: {entropy.mean():.2f} nats, {beside:.0%} beside the favourite"
            )

# %% [markdown]
# {{ statement 06.kd_loss }}


# %%
# Exercise 06.kd_loss
def kd_loss(student_logits, teacher_logits, temperature, mask):
    """The divergence of the teacher from the student, times T², and its gradient."""
    ### BEGIN SOLUTION
    log_p = (teacher_logits / temperature).log_softmax(dim=-1)
    log_q = (student_logits / temperature).log_softmax(dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    loss = temperature**2 * terms.sum(dim=-1)[mask].mean()
    gradient = temperature * (log_q.exp() - p) / mask.sum()
    return loss.item(), torch.where(mask[:, None], gradient, 0.0)
    ### END SOLUTION


# %%
check("06.kd_loss", kd_loss)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.kd_loss", kd_loss, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-square-text"
# **Demonstration.** `draft` is taught by `base` on the code: the size of the gradient at some temperatures, with your
# $T^2$ and without. *Predict*: by what factor does it shrink from T = 1 to T = 8 without, and how far does
# $T^2$ make up for that?

# %% name="06-square-demo" tags=["demo"]
with once_written(kd_loss):
    teacher, student = read(base), read(students["draft"])
    everywhere = torch.ones(256, dtype=torch.bool)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        loss, gradient = kd_loss(student.clone(), teacher, temperature, everywhere)
        size = gradient.norm().item()
        print(
            f"T = {temperature:g}: loss {loss:.2f}, gradient {size:.4f}, without T² {size / temperature**2:.5f}"
        )

# %% [markdown]
# {{ statement 06.reverse_kl }}


# %%
# Exercise 06.reverse_kl
def reverse_kl(student_logits, teacher_logits):
    """The divergence of the student from the teacher, and its gradient."""
    ### BEGIN SOLUTION
    log_q, log_p = student_logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1)
    q = log_q.exp()
    ratio = torch.where(q > 0, log_q - log_p, 0.0)
    each = (q * ratio).sum(dim=-1, keepdim=True)
    return each.mean().item(), q * (ratio - each) / len(q)
    ### END SOLUTION


# %%
check("06.reverse_kl", reverse_kl)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.reverse_kl", reverse_kl, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-peaks-text"
# **Demonstration.** A teacher with two peaks, at 10 and at 26 of 40 tokens, and a student that can only be one bell:
# the best one by either divergence, tried at every place and in some widths. *Predict*: where does each put it?

# %% name="06-peaks-demo" tags=["demo", "nbval-check-output"]
with once_written(kd_loss, reverse_kl):
    places = torch.arange(40.0)
    teacher = torch.stack([-((places - peak) ** 2) / 8 for peak in (10, 26)]).logsumexp(0)[None]
    found = {"forward": [], "reverse": []}
    for place in range(40):
        for width in (1, 2, 3, 5, 8, 12):
            bell = -((places - place) ** 2)[None] / (2 * width**2)
            forward, _ = kd_loss(bell, teacher, 1.0, torch.tensor([True]))
            found["forward"].append((forward, place, width))
            found["reverse"].append((reverse_kl(bell, teacher)[0], place, width))
    for way, tried in found.items():
        print("{}: least is {:.2f}, at token {}, {} wide".format(way, *min(tried)))

# %% [markdown]
# {{ statement 06.mixed_loss }}


# %%
# Exercise 06.mixed_loss
def mixed_loss(student_logits, teacher_logits, labels, hard_weight, temperature):
    """The mixture of hard and soft labels, and both of its parts."""
    ### BEGIN SOLUTION
    kept = labels != -100
    if not kept.any():
        return 0.0, 0.0, 0.0
    z, teacher = student_logits[kept], teacher_logits[kept]
    hard = torch.nn.functional.cross_entropy(z, labels[kept]).item()
    log_p = (teacher / temperature).log_softmax(dim=-1)
    log_q = (z / temperature).log_softmax(dim=-1)
    soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()
    return hard_weight * hard + (1 - hard_weight) * soft, hard, soft
    ### END SOLUTION


# %%
check("06.mixed_loss", mixed_loss)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.mixed_loss", mixed_loss, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-mixed-text"
# **Demonstration.** Both parts for both students, in either text; the prompt, a quarter of each, has no labels. Last the
# teacher itself, taught by itself. *Predict*: which of the two parts is then 0?

# %% name="06-mixed-demo" tags=["demo"]
with once_written(mixed_loss):
    for kind in texts:
        teacher, labels = read(base, kind), tokens[kind][1:].clone()
        labels[:64] = -100
        for name, model in {**students, "base": base}.items():
            loss, hard, soft = mixed_loss(read(model, kind), teacher, labels, 0.5, 2.0)
            print(f"{kind:7} {name:5}: hard {hard:.2f}, soft {soft:.2f}, mixed {loss:.2f}")

# %% [markdown]
# {{ statement 06.top_k_teacher }}


# %%
# Exercise 06.top_k_teacher
def top_k_teacher(student_logits, ids, log_probs):
    """The divergence of k stored tokens and a bucket for the rest."""
    ### BEGIN SOLUTION
    ids, log_p = ids.long(), log_probs.float()
    p, log_q = log_p.exp(), student_logits.log_softmax(dim=-1)
    rest = (1 - p.sum(dim=1)).clamp(min=0)
    log_q_rest = log_q.scatter(1, ids, -torch.inf).logsumexp(dim=1)
    stored = (p * (log_p - log_q.gather(1, ids))).sum(dim=1)
    return stored + torch.xlogy(rest, rest) - rest * log_q_rest
    ### END SOLUTION


# %%
check("06.top_k_teacher", top_k_teacher)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.top_k_teacher", top_k_teacher, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-stored-text"
# **Demonstration.** `base` stored for `draft`: what a token takes up, and how much of the whole divergence the $k + 1$
# numbers see. (The chapter stores the rest as well, in two bytes more; here it is what the others leave.) A vocabulary
# of 12,288 in 16 bits would be 24,576 bytes a token. *Predict*: how many are needed for 90 %?

# %% name="06-stored-demo" tags=["demo"]
with once_written(top_k_teacher):
    teacher, student = read(base).log_softmax(-1), read(students["draft"])
    whole = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1).mean()
    for k in (1, 4, 16, 64, 256):
        stored, ids = teacher.topk(k)
        stored, ids = stored.half(), ids.int()
        seen = top_k_teacher(student, ids, stored).mean() / whole
        print(
            f"k = {k:3}: {(stored.nbytes + ids.nbytes) // 256:5,} bytes a token, {seen:.0%} of the divergence"
        )

# %% [markdown] name="06-worked-text"
# ## What it has worked out, and a step of training

# %% [markdown]
# {{ statement 06.projection_loss }}


# %%
# Exercise 06.projection_loss
def projection_loss(student_hidden, teacher_hidden, weight, lengths):
    """The mean square of projected differences, and its gradient for the projection."""
    ### BEGIN SOLUTION
    mask = torch.arange(student_hidden.shape[1]) < lengths[:, None]
    h_s, h_t = student_hidden[mask], teacher_hidden[mask]
    r = h_s @ weight.T - h_t
    return r.square().mean().item(), 2 * r.T @ h_s / r.numel()
    ### END SOLUTION


# %%
check("06.projection_loss", projection_loss)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.projection_loss", projection_loss, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-features-text"
# **Demonstration.** A projection from the last hidden states of `draft`, 128 wide, to those of `base`, 320 wide, trained
# by your gradient on three texts of different lengths. *Predict*: with $\Phi = 0$ the loss is the mean square of the
# teacher's states. How far down does a matrix alone get it, with the student as it is?

# %% name="06-features-demo" tags=["demo"]
rows = torch.stack([tokens["code"][:256], tokens["English"][:256], tokens["code"][1:]])
with torch.no_grad():
    h_s, h_t = (model.hidden_states(rows) for model in (students["draft"], base))
with once_written(projection_loss):
    lengths, phi = torch.tensor([256, 100, 180]), torch.zeros(320, 128)
    rate = 0.25 * 320 / h_s.square().sum(-1).mean()
    for step in range(1001):
        loss, gradient = projection_loss(h_s, h_t, phi, lengths)
        if step in (0, 10, 100, 1000):
            print(f"after {step:5,} steps: {loss:.3f}")
        phi = phi - rate * gradient

# %% [markdown]
# {{ statement 06.train_step }}


# %%
# Exercise 06.train_step
def train_step(adapter, head, parts, temperature, max_norm, lr):
    """Loss, norm and both weights after a step on all parts."""
    ### BEGIN SOLUTION
    a, h = (weight.clone().requires_grad_() for weight in (adapter, head))
    size, total = sum(len(states) for states, _ in parts), 0.0
    for states, teacher_states in parts:
        log_p = (teacher_states @ h.detach().T / temperature).log_softmax(dim=-1)
        log_q = (states @ a.T @ h.T / temperature).log_softmax(dim=-1)
        loss = temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / size
        loss.backward()  # adds to .grad
        total += loss.item()
    norm = torch.cat([weight.grad.flatten() for weight in (a, h)]).norm().item()
    rate = lr * min(1.0, max_norm / norm) if norm > 0 else lr
    return total, norm, adapter - rate * a.grad, head - rate * h.grad
    ### END SOLUTION


# %%
check("06.train_step", train_step)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.train_step", train_step, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-exit-text"
# **Demonstration.** A layer of `base` learns from its last: what layer 3 of 6 gives is brought to the head by an adapter
# that begins as nothing at all, in steps of two parts, 192 and 64 tokens of the code. *Predict*: how often is its
# favourite token the teacher's at the end? (On the text that it was trained on, which says little of any other.)

# %% name="06-exit-demo" tags=["demo"]
early = []
hook = base.model.layers[2].register_forward_hook(lambda _, given, out: early.append(out))
with torch.no_grad():
    last = base.hidden_states(tokens["code"][None, :-1])[0]
hook.remove()
early = torch.nn.functional.layer_norm(early[0][0], (320,))
parts, favourites = [(early[:192], last[:192]), (early[192:], last[192:])], read(base).argmax(-1)

# %% name="06-steps-demo" tags=["demo"]
with once_written(train_step):
    adapter, head = torch.zeros(320, 320), base.lm_head.weight.detach()
    for step in range(41):
        loss, norm, new_adapter, new_head = train_step(adapter, head, parts, 1.0, 1.0, 0.05)
        if step % 10 == 0:
            same = ((early @ adapter.T @ head.T).argmax(-1) == favourites).float().mean()
            print(f"step {step:2}: loss {loss:.2f}, norm {norm:.2f}, favourites {same:.0%}")
        adapter, head = new_adapter, new_head

# %% [markdown] name="06-honest-text"
# ## What may be said of it

# %% [markdown]
# {{ statement 06.calibration }}


# %%
# Exercise 06.calibration
def calibration(probs, labels, num_bins):
    """The expected calibration error, and the table of its bins."""
    ### BEGIN SOLUTION
    confidence, favourite = probs.max(dim=-1)
    bins = (confidence * num_bins).ceil().long() - 1
    counts = torch.bincount(bins, minlength=num_bins)
    conf, acc = (
        torch.bincount(bins, weights=each.double(), minlength=num_bins) / counts.clamp(min=1)
        for each in (confidence, favourite == labels)
    )
    ece = (counts / len(probs) * (acc - conf).abs()).sum().item()
    return ece, torch.stack((counts, conf, acc), dim=1).float()
    ### END SOLUTION


# %%
check("06.calibration", calibration)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.calibration", calibration, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-sure-text"
# **Demonstration.** Teacher and students on either text, and `draft` with logits that are half as large, or twice.
# *Predict*: which of these is the best calibrated? And is the calibration of 256 tokens that of the model?

# %% name="06-sure-demo" tags=["demo"]
with once_written(calibration):
    for kind in texts:
        logits = {name: read(model, kind) for name, model in {**students, "base": base}.items()}
        logits |= {f"{factor:g} × draft": factor * logits["draft"] for factor in (0.5, 2)}
        for name, each in logits.items():
            ece, table = calibration(each.softmax(-1), tokens[kind][1:], 10)
            n, conf, acc = table.T
            confidence, accuracy = ((n * mean).sum() / n.sum() for mean in (conf, acc))
            print(f"{kind:7} {name:11}: ECE {ece:.3f}, sure {confidence:.0%}, right {accuracy:.0%}")

# %% [markdown]
# {{ statement 06.read_table }}


# %%
# Exercise 06.read_table
def read_table(losses, k, domains):
    """Gains of paired seeds, their standard errors, and what may be claimed."""
    ### BEGIN SOLUTION
    differences = losses[:1] - losses[1:]
    gains = differences.mean(dim=-1)
    errors = differences.std(dim=-1) / losses.shape[-1] ** 0.5
    wins, loses = (gains > k * errors).sum(dim=1), (gains < -k * errors).sum(dim=1)
    claims = []
    for won, lost in zip(wins.tolist(), loses.tolist(), strict=True):
        enough = "better" if won >= domains else "worse" if lost >= domains else "not shown"
        claims.append("mixed" if won and lost else enough)
    return gains, errors, claims
    ### END SOLUTION


# %%
check("06.read_table", read_table)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("06.read_table", read_table, seed)
### END HIDDEN TESTS

# %% [markdown] name="06-luck-text"
# **Demonstration.** Two thousand methods that do nothing: every difference to the twin, whose losses are all 3, is noise. How many of them are
# called better, worse or mixed all the same? *Predict*: with one domain and three standard errors, for 3 seeds and for
# 10. (A normal distribution lies beyond three standard deviations in 0.3 % of cases; the error is itself estimated.)

# %% name="06-luck-demo" tags=["demo", "nbval-check-output"]
with once_written(read_table):
    for seeds in (3, 5, 10):
        noise = torch.randn(2001, 3, seeds, generator=numbers, dtype=torch.float64)
        noise[0] = 0.0  # else one twin's luck would be in all the differences
        for k, domains in ((2.0, 1), (3.0, 1), (3.0, 2)):
            judged = noise[:, :1] if domains == 1 else noise
            _, _, claims = read_table(3 + 0.01 * judged, k, domains)
            false = sum(claim != "not shown" for claim in claims) / len(claims)
            print(
                f"{seeds:2} seeds, {k:g} errors in {domains} of {judged.shape[1]}: {false:.1%} claim something"
            )

# %% [markdown] name="06-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="06-points" tags=["demo", "nbval-check-output"]
points_so_far("06_distillation", globals())
