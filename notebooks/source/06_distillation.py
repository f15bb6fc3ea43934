# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chapter 6 · Distillation
#
# Chapters 2 to 5 made one model cheaper to run. This one asks for another model: a small one, the *student*, that
# learns from a large one, the *teacher*, and not from text alone. The teacher can say more of each token than the text
# does: how likely every other token would have been (its response), and what it worked out on the way (its features).
# The lecture names these two ways; this chapter takes them apart, trains small students in front of your eyes, and
# says where a teacher is in the way. At the end stands a model with everything that the course did to it.
#
# **When you have worked through this chapter you can**
#
# - say what soft labels know that a text does not, and count how many texts one of them is worth,
# - derive where the factor $T^2$ comes from, and what happens without it,
# - choose among forward KL, reverse KL and Jensen–Shannon by what a student too small for its teacher should give up,
# - say what a stored teacher takes on disk, and which of two ways to store it is biased,
# - compare layers of other widths, through a projection or without one,
# - train a student by the text, by response, by features and on its own text, and read the result with its spread,
# - name three cases in which a teacher hurts, with a measurement of each,
# - predict memory and time of the loss over a vocabulary of 128,000, and what a distilled draft does to speculation,
# - win back what 3 bits lost, and add up what the whole course brings, step by step, each beside its roofline.
#
# **Time** about 90 minutes of reading and playing; the cells run in about three minutes.
# **Hardware** any laptop; the study with seeds, and what a GPU does, are recorded.
#
# | symbol | term | 中文 |
# |---|---|---|
# | | knowledge distillation; teacher, student | 知识蒸馏；教师模型，学生模型 |
# | $t,\ z$ | logits of teacher and student | 对数几率 |
# | $p,\ q$ | their distributions, over a vocabulary of $V$ | 教师分布，学生分布；词表大小 |
# | $T,\ p_T$ | temperature; $\mathrm{softmax}(t / T)$, the soft labels | 温度；软标签 |
# | $y,\ w$ | hard label: the token that follows in the text; its share in a loss | 硬标签；权重 |
# | | response-based distillation | 基于反馈的知识蒸馏 |
# | | feature-based distillation | 基于特征的蒸馏 |
# | $\Phi,\ D_s,\ D_t$ | projection to the teacher's width; widths of hidden states | 投影；宽度 |
# | | dark knowledge: what is said of tokens that did not come | 暗知识 |
# | $\mathrm{KL}(p \Vert q)$, $\mathrm{KL}(q \Vert p)$ | forward and reverse divergence | 前向，反向 KL 散度 |
# | JSD($\beta$), $m$ | Jensen–Shannon divergence with its dial; the mixture $\beta p + (1 - \beta) q$ | JS 散度；混合分布 |
# | $r$ | what a stored teacher has left for all others | 剩余概率 |
# | $\lambda$ | on-policy: on the student's own text; its share | 同策略 |
# | $\alpha = \mathbb E \sum \min(p, q)$ | acceptance: the chance that a draft stands (chapter 4) | 接受率 |
# | $\gamma,\ c$ | drafts a step; what one costs, in passes of the target (chapter 4) | 每步草稿词元数；草稿成本 |
# | ECE | expected calibration error | 期望校准误差 |
# | | capacity gap | 容量差距 |

# %%
import torch

from llmcourse import hardware, pretrained, progress, prompts
from llmcourse.distillation import Writer
from llmcourse.figures import recorded, widgets

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
h200, names = hardware.datasheet("H200"), ("base", "small", "draft")
family = {name: pretrained.load(name) for name in names}
(base, tokenizer), (draft, _) = family["base"], family["draft"]
for name, (model, _) in family.items():
    c = model.config
    print(f"{name:6}{model.num_parameters / 1e6:5.1f} M parameters, {c.num_layers} layers of {c.hidden_size}")

# %% [markdown]
# Text is needed, to learn from and to measure on. Nothing is downloaded: prose and verse are what `base` writes behind
# openings that it knows, drawn from its own distributions; code is the standard library of your Python. Openings and
# modules that are learned from and those that are measured on are not the same.

# %%
import sysconfig
from itertools import chain
from pathlib import Path
from pydoc_data import topics


def domains(use, length):
    """Tokens by domain; 0 is the half to learn from, 1 the half to measure on."""
    found, writer = {}, Writer(base)
    for name, openings in progress.bar({"prose": prompts.PROSE, "verse": prompts.VERSE}.items(), "texts"):
        starts = [tokenizer.encode_prompt(each)[:6] for each in openings[use::2]]
        found[name] = writer.write(torch.tensor(starts), length, seed=use).flatten()
    files = (Path(sysconfig.get_path("stdlib")) / name for name in prompts.CODE_MODULES[use::2])
    code = (tokenizer.encode_prompt(file.read_text(encoding="utf-8")[:8000]) for file in files)
    return found | {"code": torch.tensor([*chain.from_iterable(code)])}


# %%
text, held = domains(0, 160), domains(1, 128)
for what, streams in (("to learn from", text), ("to measure on", held)):
    print(what + ":", ", ".join(f"{len(tokens):,} tokens of {domain}" for domain, tokens in streams.items()))
print(repr(tokenizer.decode(held["prose"][:60].tolist())))

# %% [markdown]
# # Part one: what a teacher says
#
# ## 6.1 Soft labels
#
# A student that learns from text is told one token $y$ at each position, and lowers $-\ln q(y)$. A student that learns
# from a teacher is told the whole distribution $p$ (Hinton et al. 2015):
#
# $$\mathrm{KL}(p \Vert q) = \sum_v p(v) \ln \frac{p(v)}{q(v)}, \qquad
#   \frac{\partial}{\partial z} = q - p, \qquad \text{instead of} \quad
#   \frac{\partial}{\partial z} (-\ln q(y)) = q - \mathrm{onehot}(y) .$$
#
# This is *response-based* distillation (基于反馈的知识蒸馏), $p$ are the *soft labels* (软标签). Look at the two gradients. If
# the text was drawn from $p$, then $\mathbb E[\mathrm{onehot}(y)] = p$: both teach the same, *on average*. But a single
# $y$ is noise around it, with a mean square of $1 - \sum_v p(v)^2$, while what is to be learned has $\lVert p - q
# \rVert^2$. Their ratio says how many texts with the same beginning one would have to read until the noise is as small
# as the signal. The teacher says it at once.
#
# *Predict*, for `draft` as the student of `base`: how much probability does `base` give to tokens *other* than the one
# that came? And how many texts is one of its distributions worth, in prose, verse and code?

# %%
MY_GUESS = 10  # texts

print(f"your guess: a soft label is worth {MY_GUESS} hard ones")
for domain, stream in held.items():
    rows = stream[: 16 * 128].view(16, 128)
    with torch.no_grad():
        p, q = (model(rows[:, :-1]).softmax(-1) for model in (base, draft))
    others = 1 - p.gather(-1, rows[:, 1:, None]).mean()
    noise, signal = 1 - p.square().sum(-1).mean(), (p - q).square().sum(-1).mean()
    nats = torch.special.entr(p).sum(-1).mean()
    print(f"{domain}: {others:.0%} on other tokens, entropy {nats:.2f} nats; ", end="")
    print(f"noise {noise:.3f}, signal {signal:.3f}: worth {noise / signal:.1f}")

# %% [markdown]
# What `base` says of tokens that did not come is called *dark knowledge* (暗知识): a text never shows it. Most of its
# probability is there. (In code the text was not drawn from `base`, so that there the count is only an idea.) And the
# count is of one position with one student: the better the student gets, the smaller the signal, the same the noise,
# and the more a soft label is worth.
#
# Below are some positions. Look at what comes second and third: they are mostly tokens that would have done,
# too. Then play with the explorer: ● is the teacher, ◆ the student, and the bars are the pushes $-\partial L/\partial
# z$. Find a position where the token that *did* come is pushed *down*.

# %%
for opening in (
    "I am sleepy. I start a pot of",
    "The old woman looked at him and",
    "《静夜思》李白\n床前看月光，疑是",
):
    ids = torch.tensor([tokenizer.encode_prompt(opening)])
    print(repr(opening))
    for name in ("base", "draft"):
        with torch.no_grad():
            p, best = family[name][0](ids)[0, -1].softmax(-1).topk(6)
        told = (f"{tokenizer.label(v)} {x:.0%}" for x, v in zip(p, best.tolist(), strict=True))
        print(f"    {name:6}", "  ".join(told), f"  others {1 - p.sum():.0%}")
story = tokenizer.decode(held["prose"][1:41].tolist())
widgets.DistillationExplorer(family, story, teacher="base", student="draft", position=20)

# %% [markdown]
# ## 6.2 Temperature, and where $T^2$ comes from
#
# A teacher that is sure says little about the others: 0.98, and dust. Dividing the logits of *both* by a temperature
# $T > 1$ softens both distributions and brings the dust up. The gradient becomes
#
# $$\frac{\partial}{\partial z} \mathrm{KL}(p_T \Vert q_T) = \frac{1}{T}\, (q_T - p_T) ,$$
#
# and $q_T - p_T$ shrinks like $1/T$, too, as both go to $1/V$: for large $T$ and logits with mean 0 the gradient is
# about $(z - t)/(V T^2)$. So it goes down like $1/T^2$. Whoever mixes soft and hard labels, $(1 - w)\, T^2\,
# \mathrm{KL} + w\, (-\ln q(y))$, needs the factor $T^2$, or the teacher soon has hardly a say any more.
#
# *Predict*: by what does the length of the gradient without $T^2$ change from $T = 1$ to 2, from 8 to 16? At which $T$
# does distillation become plain matching of logits, with a cosine of nearly 1 to the differences of centred logits? Is
# that good?

# %%
from llmcourse.distillation import forward_kl

rows = held["prose"][: 4 * 128].view(4, 128)
with torch.no_grad():
    t, z = (model(rows)[:, 1:] for model in (base, draft))
apart = (z - z.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
hard = z[:, :-1].softmax(-1) - torch.nn.functional.one_hot(rows[:, 2:], z.shape[-1])
print(f"mean length of the gradient of hard labels: {hard.norm(dim=-1).mean():.2g}")
print("T; mean length of the gradient without T², with T²; cosine with logits' differences; spent on dust")
for temperature in (1, 2, 4, 8, 16, 64):
    leaf = z.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(forward_kl(leaf, t, temperature=temperature), leaf)  # each position's / n
    length, cosine = g.norm(dim=-1).sum(), torch.cosine_similarity(g, apart, -1).mean()
    dust = g[t.softmax(-1) <= 1e-3].abs().sum() / g.abs().sum()
    print(f"{temperature:3}{length / temperature**2:12.2g}{length:12.2g}{cosine:10.2f}{dust:10.0%}")

# %% [markdown]
# From $T = 8$ on it is as derived: without $T^2$ the gradient falls to a quarter with every doubling, with $T^2$ it
# stays where it is. Only there does $T^2$ keep the teacher's weight. Between 1 and 4 the gradient falls faster, with
# $T^2$ as well, from a quarter of that of hard labels to a 26th (without it, to a 400th): the few likely tokens lose
# their probability to thousands of others, over which a push of the same sum is spread much shorter. The last column
# is the share of all pushes that is spent on tokens to which the teacher gives less than a thousandth: at high
# temperatures nearly all. That is fine for a student that can match all logits, and a waste for a small one. With
# vocabularies as large as those of language models one mostly stays near $T = 1$.
#
# ## 6.3 A student that is too small
#
# If the student can be the teacher, every divergence has one minimum, $q = p$. If it cannot, they disagree about
# what to give up.
#
# - **Forward** $\mathrm{KL}(p \Vert q)$ is large where $p > 0$ and $q \approx 0$: the student has to *cover* all of the teacher
#   (mode covering), and puts mass in between, where the teacher has none.
# - **Reverse** $\mathrm{KL}(q \Vert p)$ is large where $q > 0$ and $p \approx 0$: the student *seeks* one mode and leaves the rest
#   (MiniLLM, Gu et al. 2024: better one good answer than a mean of all).
# - **JSD($\beta$)** (Agarwal et al. 2024, GKD): $\beta\, \mathrm{KL}(p \Vert m) + (1 - \beta)\, \mathrm{KL}(q \Vert
#   m)$ with $m = \beta p + (1 - \beta) q$: never above $\ln 2$. It is 0 at both ends; what is meant there are the
#   limits of JSD/$\beta$ and JSD/$(1 - \beta)$, forward and reverse KL, which have no bound. So it is a dial between
#   them.
#
# Here the teacher has two peaks, and the student only one, with a centre and a width; the cell tries all of them and
# takes the best for each $\beta$ (0 and 1: these limits). *Predict* where the centre will be, how
# much of the student's mass lies where the teacher has hardly any, and which of them has the largest $\sum \min(p,
# q)$, the acceptance of chapter 4.

# %% tags=["nbval-check-output"]
from llmcourse.distillation import Response
from llmcourse.distillation.losses import divergence_of

places = torch.linspace(-5, 5, 201, dtype=torch.float64)
bump = lambda at, width: -(((places - at) / width) ** 2) / 2  # noqa: E731
log_p = (0.6 * bump(-1.8, 0.6).exp() + 0.4 * bump(1.8, 0.6).exp() + 1e-9).log().log_softmax(-1)
tried = torch.cartesian_prod(torch.linspace(-3, 3, 121), torch.linspace(0.3, 3, 109)).double()
log_q = bump(tried[:, :1], tried[:, 1:]).log_softmax(-1)  # all students that there are
for beta in (0, 0.1, 0.5, 0.9, 1):
    losses = divergence_of(Response("jensen_shannon", beta=beta), log_p.expand_as(log_q), log_q)
    (at, width), q = tried[losses.argmin()].tolist(), log_q[losses.argmin()].exp()
    nowhere, overlap = q[log_p.exp() < 0.002].sum(), torch.min(log_p.exp(), q).sum()
    print(f"β = {beta}: centre {at:5.2f}, width {width:.2f}; ", end="")
    print(f"{nowhere:.0%} where the teacher has next to nothing, Σ min {overlap:.3f}")

# %% [markdown]
# Forward KL puts the student between the peaks, with the teacher's whole width, and a third of what it would say the
# teacher hardly ever would. Reverse KL sits on the larger peak and knows nothing of the other. On the dial there is a
# point between where the one answer becomes the other. So forward KL is right for a student whose *probabilities*
# are needed, reverse KL for one that has to write one good text. For a draft neither is the point: what counts there
# is $\sum \min(p, q) = 1 - \tfrac12 \lVert p - q \rVert_1$, and in this example that is about the same for both. In
# real distributions it is not (6.10).
#
# ## 6.4 A teacher that is stored
#
# Ten students that read the same text ask the same teacher the same questions. Its answers can be kept: all of them
# are $2V$ bytes a token in fp16; the $k$ likeliest, with their names, are $6k$ and two more for all others together,
# $r$. The rest can be one *bucket*, an outcome of its own; or it is dropped and the $k$ are *renormalised*, as if
# there were no others. *Predict* which of both is biased, and how. How many $k$ are needed until the gradient is
# nearly that of the whole teacher?

# %%
from llmcourse.distillation import TopK, stored_loss

leaf = z.clone().requires_grad_(True)
(g,) = torch.autograd.grad(whole := forward_kl(leaf, t), leaf)
print(f"the whole teacher: {2 * t.shape[-1]:,} bytes a token in fp16, KL {whole:.3f}")
print("    k  bytes, probability kept; by a bucket, and renormalised: the loss, cosine of its gradient")
for k in (1, 4, 16, 64, 256, 1024):
    stored = TopK.of(t, k)
    row = f"{k:5}{stored.bytes_per_token:7,}{1 - stored.log_probs[..., -1].float().exp().mean():7.0%}   "
    for rest in ("bucket", "renormalised"):
        loss = stored_loss(Response(), leaf, stored, rest=rest)
        (own,) = torch.autograd.grad(loss, leaf)
        row += f"{loss:9.3f} {torch.cosine_similarity(own.flatten(), g.flatten(), 0):6.3f}"
    print(row)

# %% [markdown]
# A bucket can only lose: its loss is never above that of the whole. What it does not say is how to share $r$ out among
# the others, and that is much of the loss; but the *direction* of the gradient is nearly right with a few dozen
# tokens. The renormalised loss lies above, and for a reason: its minimum is not $p$ but a student that has nothing
# left for the others. With $k = 1$ it *is* a hard label, the teacher's favourite. A student trained like that is too
# sure of itself (Anshumann et al. 2025). `python -m llmcourse.distillation --top-k 64 --cache FOLDER` keeps a teacher
# like this on disk.
#
# # Part two: what a teacher thinks
#
# ## 6.5 Features, projections, maps of layers
#
# *Feature-based* distillation (基于特征的蒸馏) compares what is inside: richer than the output, says the lecture, and it
# tells each layer what to do, not only the last one. But a student of width 128 cannot equal a state of width 320. So
# a matrix $\Phi$ is learned along with the student (FitNets, Romero et al. 2015), and thrown away afterwards:
#
# $$\lVert \Phi\, h_s - h_t \rVert^2 / \lVert h_t \rVert^2 .$$
#
# What needs no $\Phi$ are relations of $n$ tokens among each other, $n \times n$ whatever the width: attention maps,
# and *value relations* $\mathrm{softmax}(A A^\top / \sqrt a)$ of a head's values $A$, $a$ wide (MiniLM, Wang et al.
# 2020).
#
# *Predict*: `draft` and `base` were trained apart, on the same text. How much of a layer of `base` can a *linear* map
# find in a layer of `draft` already? The cell fits the best $\Phi$ for each pair on one half of some rows, and
# measures on the other half which share of the squares is left. (A share of 1 is a student that says nothing.)

# %%
from llmcourse.distillation import read_features
from llmcourse.distillation.features import hidden_loss

rows, states = torch.cat([stream[:2048].view(16, 128)[:, :96] for stream in held.values()]), []
for model in (draft, base):
    with torch.no_grad():
        found = read_features(model, rows, range(1, model.config.num_layers + 1))[1]
    states.append({n: one.hidden[:, 1:] for n, one in found.items()})
print("share of the squares that is left of base's layer " + "".join(f"{n:7}" for n in states[1]))
for mine, x in states[0].items():
    row = f"    by the best Φ from draft's layer {mine}             "
    for y in states[1].values():
        phi = torch.linalg.lstsq(x[::2].flatten(0, 1), y[::2].flatten(0, 1)).solution
        row += f"{hidden_loss(x[1::2] @ phi, y[1::2]):7.2f}"
    print(row)

# %%
from llmcourse.distillation import FeatureLoss, FeatureWeights, LayerMap

for make in (LayerMap.uniform, LayerMap.skip, LayerMap.tail, LayerMap.last):
    print(f"{make.__name__:8}", *make(2, 6).pairs)
wishes = {"states, with Φ": {}, "states without Φ": {"project": False}}
wishes |= {"attention maps": {"hidden": 0, "attention": 1}, "value relations": {"hidden": 0, "values": 1}}
for name, weights in wishes.items():
    try:
        FeatureLoss(draft.config, base.config, LayerMap.uniform(2, 6), FeatureWeights(**weights))
        print(f"{name}: possible")
    except ValueError as error:
        print(f"{name}: {error}")
widgets.LayerMapView(family, teacher="base", student="draft")

# %% [markdown]
# A linear map finds four tenths of a layer of `base` in `draft`, and more than half of the last one, out of which both
# have to say the next token. The rest is what a student would have to learn. Attention maps cannot be compared here
# at all, since the two have not as many heads.
#
# Which layer learns from which is a *map of layers*: the whole depth in even steps (TinyBERT), every so many without
# the last (PKD), those just before the last (`tail`, PKD too), the last alone (MiniLM). The picture shows how much
# layers are alike before anything is learned, by a measure that asks for neither the same width nor the same axes
# (CKA, Kornblith et al. 2019). Find the map whose pairs are most alike. It is `last`, with 0.65: both of its layers
# are read by the same kind of head. That need not be the best to learn by: what is alike already has the least to
# say, and layer 1 is told nothing of its own.
#
# # Part three: students
#
# ## 6.6 A short run
#
# To train a student from nothing takes longer than you want to wait. So ours begin with a *common checkpoint*: a
# student that is made of two layers of `base`, the first and the last, with its embedding (as DistilBERT was, Sanh et
# al. 2019). It has the teacher's width and axes, and needs no $\Phi$. It has forgotten nearly everything, and learns
# it again,
#
# - by the **text** alone, the hard labels,
# - by **response**, forward KL at $T = 1$,
# - by **both** response and features, layers 1 and 2 from 3 and 6 (in code, `response=None` puts the text's hard
#   labels in place of the response, with features or without),
#
# for ten steps of 288 tokens, three times, with three orders of the text: seeds. All that differs between two ways
# with one seed is what was learned from, so we compare them *seed by seed*: what the order of the text does to both of
# them is taken away with the difference.
#
# *Predict* the order of the three, and how many standard errors the first is away from the others.

# %%
import copy
from dataclasses import replace

from llmcourse.distillation import measure


def pruned(model, layers):
    """A student made of some layers of a model, counted from 1, in the order given."""
    kept = copy.deepcopy(model)
    kept.model.layers = torch.nn.ModuleList(kept.model.layers[n - 1] for n in layers)
    student = type(model)(replace(model.config, num_layers=len(layers)))
    student.load_state_dict(kept.state_dict())
    return student


# %%
import tempfile

from llmcourse.distillation import Distillation, distill
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain

SIZES = {"batch_size": 6, "sequence_length": 48, "warmup": 2}


def told(student, teacher=base, streams=held, windows=6):
    """Of each domain what `measure` found."""
    return {one.domain: one for one in measure(student, teacher, streams, length=128, max_windows=windows)}


# %%
def trained(student, teacher, streams, steps, rate, *, seed=0, **learned):
    """A copy of a student, after some steps of 6 rows of 48 tokens."""
    student, rates = copy.deepcopy(student), {"matrix_lr": rate, "other_lr": rate}
    recipe = Recipe("student", student.config, steps, dict.fromkeys(streams, 1), seed=seed, **SIZES, **rates)
    given = [Domain(name, tokens.int(), separator=0) for name, tokens in streams.items()]
    with tempfile.TemporaryDirectory() as folder:
        distill(Distillation(recipe, **learned), student, teacher, given, Path(folder) / "state.pt")
    return student


# %%
STEPS = 10
start, students, runs = pruned(base, (1, 6)), {}, []
ways = {"text": {"response": None}, "response": {}, "both": {"features": FeatureWeights(project=False)}}
measures = ("nats", "kl", "agreement", "acceptance", "calibration_error")
for seed in progress.bar(range(3), "seeds"):
    for kind, learned in ways.items():
        students[kind, seed] = trained(start, base, text, STEPS, 0.0024, seed=seed, **learned)
        for domain, one in told(students[kind, seed]).items():
            row = {"student": "2 layers", "domain": domain, "kind": kind, "seed": seed, "steps": STEPS}
            runs.append(row | {name: getattr(one, name).mean for name in measures})
before = told(start)
for domain, one in before.items():
    print(
        f"before, {domain}: {one.nats.mean:.2f} nats, the teacher has {one.teacher_nats.mean:.2f}; KL {one.kl}"
    )

# %%
from llmcourse.distillation.paired import paired

compared = (("response", "text"), ("both", "text"), ("both", "response"))
print("differences seed by seed, ± a standard error (how many of them it is)")
print("mean by the text    " + "".join(f"{f'{kind} − {known}':23}" for kind, known in compared))
for name in ("kl", "nats", "acceptance"):
    over = {k: {(one.domain, one.kind): one for one in paired(runs, name, baseline=k)} for _, k in compared}
    for domain in held:
        row = f"{name:11}{domain:6}{over['text'][domain, 'both'].baseline.mean:.3f}"
        for kind, known in compared:
            one = over[known][domain, kind]
            row += f"  {one.difference.mean:+.3f} ± {one.difference.error:.3f} ({abs(one.errors):2.0f})"
        print(row)

# %% [markdown]
# Response beats text in every domain, at equal tokens, and in prose and verse by many standard errors. In code the
# seeds differ more: that text is not the teacher's, and a hard label may say something there that the teacher does
# not know (6.8). (With three runs a standard error is itself known to a half only: take its multiples for orders of
# magnitude, and two of them for nothing.) Features add little to that here: acceptance rises once more, the other two
# move by less than 0.02 nats, for the better in verse, for the worse in prose. And they had it easy, since this
# student has the teacher's own axes. With a fresh $\Phi$ and as few steps they are rather in the way; an exercise
# lets you see that.
#
# So much for ten steps from a good start. Whether it holds from new weights and with much more text is another
# question: what a teacher adds could be nothing but speed. Below is what a GPU recorded: students of two sizes, five
# ways, the same tokens and the same seeds for all. The second picture shows gains over the twin that learned from the
# text alone, with intervals of 95 % by Student's $t$ (of three seeds, 4.3 standard errors; 3 would let one of ten
# idle methods pass): judge by them what holds. (Where it says that something is not recorded, there is nothing to
# judge yet.)

# %%
from llmcourse.distillation.recorded import study_rows
from llmcourse.early_exit.classifier.intervals import student_t
from llmcourse.figures.study_plot import plot_gains, plot_study

study = study_rows(recorded.raw_rows("distill_study"))
wanted = {"students": ("draft", "small"), "domains": ("prose", "poetry", "code"), "num_seeds": 3}
display(plot_study(study, **wanted))
display(plot_gains(study, **wanted))
print("\n".join(sorted({f"{row.student}: {row.tokens / 1e6:,.0f} M tokens" for row in study})))
seen = [vars(row) | {"steps": row.tokens} for row in study]
for one in paired(seen, "nats", baseline="response") if seen else []:
    if one.kind in ("both", "on_policy"):
        reach = student_t(0.95, one.num_seeds - 1) * one.difference.error
        row = f"{one.student:6}{one.domain:7}{one.kind:9} beside the response: gain"
        print(f"{row} {-one.difference.mean:+.3f} ± {reach:.3f} nats, 95 %")

# %% [markdown]
# The order of the short run holds from new weights, too. Response beats the text in all six places, most of all in
# verse. Features *alone*, with hard labels, bring a little, everywhere. Beside the response they add to it for
# `small` in prose and code beyond the interval; for `draft` nowhere, though two of three means point that way. Half
# of the batches on the student's own text cost `small` some of the gain on given text everywhere, `draft` in verse:
# in code nothing of `small`'s is left beyond the spread. Nobody is better calibrated than the twin from scratch by
# more than the spread, and who learned from its own text is mostly worse: of that text it was never told what really
# came.
#
# ## 6.7 On the student's own text
#
# Texts that people or teachers wrote never show what to do after a *student's* mistake, and behind its own text is
# where a student has to go on. *On-policy* distillation lets the student write, and the teacher says at each of its
# tokens what it would have said (GKD, Agarwal et al. 2024; with reverse KL it is the core of MiniLLM). No hard labels
# here: they would tell the student that it was right.
#
# For whole texts the two directions of KL differ in just this, *who writes*: forward KL of whole texts is the
# expected sum of $\mathrm{KL}(p \Vert q)$ along the *teacher's* text, reverse KL that of $\mathrm{KL}(q \Vert p)$
# along the *student's*. (That is the value. Training here sends no gradient through who wrote, nor does GKD, on
# purpose; MiniLLM adds that term, a policy gradient.) *Predict*, for our student of ten steps: which of the two is
# larger? Six more steps, on given text by forward KL, or on its own by reverse KL: which of them lowers which?

# %%
from llmcourse.distillation import reverse_kl

given = torch.cat([held[domain][:2048].view(16, 128)[:, :64] for domain in ("prose", "verse")])  # by `base`
common = {"student": students["response", 0], "teacher": base, "streams": text, "steps": 6, "rate": 0.0012}
backwards = {"own_text": 1, "response": Response("reverse_kl")}
went = {"so far": common["student"], "6 steps, given text, forward KL": trained(**common, seed=7)}
went["6 steps, own text, reverse KL"] = trained(**common, seed=7, **backwards)
for name, student in went.items():
    own, found = Writer(student).write(given[:, :16], 64, seed=9), []  # 48 tokens of its own, behind 16
    for rows, loss in ((given, forward_kl), (own, reverse_kl)):
        with torch.no_grad():
            found.append(loss(*(model(rows[:, :-1])[:, 15:] for model in (student, base))))
    print(f"{name:34} forward KL, teacher's text {found[0]:.3f}; reverse KL, own text {found[1]:.3f}")

# %% [markdown]
# Each way lowers what it asks for, and in so few steps the other rises. So "own text" and "reverse KL" belong
# together, and which of them a student needs is a matter of what it is for: to say probabilities of what others
# write, as a draft does, or to write. Writing takes time, one pass a token, which is one more reason why GKD mixes
# given and own text: a share $\lambda$ of own (`own_text`), $1 - \lambda$ of given. The recorded study's on-policy
# students have half of each.
#
# ## 6.8 Where a teacher hurts
#
# **It does not know the text.** Soft labels ask the student to be like the teacher, not to be right. Here is English
# of another kind than the novels that our models learned from: the manual of Python, from `pydoc_data`. `draft` as it
# ships learns from it for 14 steps: from the text, from `base`, or from half of each. *Predict* who has the lowest loss
# on pages that were held out, and who is closest to `base`. (What is in brackets are `base`'s own.)

# %%
pages = [tokenizer.encode_prompt(page) for _, page in sorted(topics.topics.items())]
manual, unseen = ({"manual": torch.tensor([*chain.from_iterable(pages[use::2])])} for use in (0, 1))


def beside(name, student, streams=unseen, windows=12):
    for domain, q in told(student, streams=streams, windows=windows).items():
        sure = f"calibration error {q.calibration_error.mean:.1%} ({q.teacher_calibration_error.mean:.1%})"
        row = f"{name:13}{domain:7}{q.nats.mean:.3f} nats ({q.teacher_nats.mean:.3f})"
        print(f"{row}, KL {q.kl.mean:.3f}; {sure}")


beside("draft", draft)
for name, response in {"text": None, "base": Response(), "half of each": Response(hard_weight=0.5)}.items():
    beside(name, trained(draft, base, manual, 14, 0.0012, response=response))

# %% [markdown]
# The text alone lowers the loss of this text faster than `base` does, `base` alone brings the student closest to `base`,
# and half of each does about as well on the text as the text alone and stays closer to the teacher: that is what $w$,
# the share of hard labels, is for. And mind what was easy about 6.6: prose and verse there *were* the teacher's own
# words.
#
# **It is too sure.** Suppose that a teacher is overconfident, as models are that were tuned to answer. The cell makes
# one: `base` with the gain of its last norm doubled, which is all its logits times two. Favourites stay the same.
# *Predict* what the student inherits. And would a temperature of 2 in the loss undo it?
#
# **It is too far away.** A larger teacher is a better one, but not always a better one *for this student*: what it
# says may be more than the student can follow (the *capacity gap*; Cho and Hariharan 2019, Mirzadeh et al. 2020).
# *Predict*: does `small` teach our two layers better than `base` does?

# %%
sure = copy.deepcopy(base)
sure.model.norm.weight.data *= 2
ways = {"too sure": (sure, Response()), "same, T = 2": (sure, Response(temperature=2))}
ways["small"] = (family["small"][0], Response())
beside("base", students["response", 0], held, 6)
for name, (teacher, response) in ways.items():
    beside(name, trained(start, teacher, text, STEPS, 0.0024, response=response), held, 6)

# %% [markdown]
# (Printed is what each of them has of `base`, whoever taught it.) What a teacher promises too much the student
# promises, too: its calibration error rises, in prose and code to a multiple, and so does its loss. Temperature in
# the loss undoes *nothing*: at $T = 1$ and at $T = 2$ the minimum is the same, $z = t$, twice the logits of `base`.
# And in a short run it is worse: ten steps leave $z/2$ far from $t/2$, and used at $T = 1$ all of the student's
# logits count double, its mistakes, too. A temperature for the teacher *alone* would help, or hard labels, which pull
# confidence to what really comes; a teacher that was calibrated beforehand is best.
#
# As to the gap: compare the last three lines with the first three. A teacher of little more than a third of the size
# teaches these students about as well here, though prose and verse are `base`'s own words. That is no proof of a gap:
# a few steps say little about the end of a long training, where the literature finds it. Whoever distils far down puts
# a model of middle size in between (a teacher assistant), or stops early.
#
# # Part four: what it takes, and what it brings
#
# ## 6.9 A loss over a vocabulary of 128,000
#
# With Llama 3's vocabulary a batch of 8,192 positions has logits of 2 GB in 16 bits, for each of both models. The
# usual operations hold six more of that shape in fp32: both logits, $\ln p$, $\ln q$, $p$, and a product. The fused
# loss makes logits for some rows at a time, in a buffer, computes loss *and* gradient there, and multiplies the
# gradient back (Hsu et al. 2024). With hidden states $D_s$ and $D_t$ wide, *predict* from the shapes: the memory of
# one way and of the other, and the time of the products on an H200. The second cell does the same in small: rows in
# chunks give the same gradient.

# %% tags=["nbval-check-output"]
from llmcourse.kernels.vocabulary_divergence import peak_bytes, vocabulary_divergence

N, V, Ds, Dt = 8192, 128256, 1024, 4096
logits_bytes = 2 * N * V
flops = 2 * N * V * (3 * Ds + Dt)
held_GB = (2 + 6 * 2) * logits_bytes / 1e9
print(f"logits of one model: {logits_bytes / 1e9:.1f} GB in bf16; two of them, six in fp32: {held_GB:.0f} GB")
fused_GB = peak_bytes(N, V, Ds) / 1e9
print(f"the fused way: at most {fused_GB:.2f} GB beside its arguments, both gradients among them")
time_ms = 1e3 * flops / h200.flops_per_s("bf16")
recorded_GB = (28 * 4096 * V / 1e9, peak_bytes(4096, V, 4096) / 1e9)  # 4,096 rows, both models 4,096 wide
print("as recorded below: {:.2f} GB in the usual way, {:.2f} GB fused".format(*recorded_GB))
print(f"its four products: {flops / 1e12:.0f} TFLOP, {time_ms:.0f} ms on an H200 by the roofline")

# %%
rows = held["prose"][:512].view(4, 128)
with torch.no_grad():
    hidden = [read_features(model, rows, ())[0].flatten(0, 1) for model in (draft, base)]
head, its_head = draft.lm_head.weight.detach().requires_grad_(True), base.lm_head.weight.detach()
(exact,) = torch.autograd.grad(vocabulary_divergence(hidden[0], head, hidden[1], its_head), head)
summed = torch.zeros_like(head)
for own, its in zip(*(h.split(128) for h in hidden), strict=True):
    summed += torch.autograd.grad(vocabulary_divergence(own, head, its, its_head) / 4, head)[0]
print(f"in chunks, the gradient is off by {(summed - exact).norm() / exact.norm():.0e} of its length")
kinds = (f"kd_loss_{kind}_n8192_d1024" for kind in ("forward_kl", "reverse_kl", "jensen_shannon"))
for name in ("kd_loss_v128k_memory", "distill_step_100m_400m", *kinds):
    print("\n".join(map(recorded.told, recorded.recorded(name))) or f"{name} is not recorded yet.")

# %% [markdown]
# Memory is as counted. Time is not: the datasheet's rate is reached by no product, so that four of them
# take 19 ms in place of 15, and the softmax between them four to seven more. A training step is products, too: those
# of student and teacher, and these four. So it is counted against the *measured* rate of a large product in bf16.
#
# ## 6.10 A draft that learned from its target
#
# In chapter 4 a draft stood with a chance of $\alpha = \mathbb E \sum \min(p, q)$; $\gamma$ of them are made a step,
# and each costs $c$ passes of the target. `draft` and `base` never met: both learned from the same text. Distillation
# teaches the draft just what counts (Zhou et al. 2024), and *losslessness* is not at stake: the target's verification
# stays. *Predict*, for `draft` as it ships and a dozen steps more: which divergence does more for $\sum \min(p, q)$,
# forward KL or JSD(0.5)? And what would another 0.05 of acceptance be worth in speed?

# %%
kinds = {"forward KL": Response(), "JSD(0.5)": Response("jensen_shannon")}
after, tried, ships = {}, [], told(draft)
for seed in progress.bar(range(3), "seeds"):
    for name, response in kinds.items():
        after[name] = trained(draft, base, text, 12, 0.0004, seed=seed, response=response)
        for domain, one in told(after[name]).items():
            row = {"student": "draft", "domain": domain, "kind": name, "seed": seed, "steps": 12}
            tried.append(row | {"acceptance": one.acceptance.mean, "kl": one.kl.mean})
for name in ("acceptance", "kl"):
    for one in paired(tried, name, baseline="forward KL"):
        known = getattr(ships[one.domain], name).mean
        row = f"{name:10} {one.domain:6} ships {known:.4f}, forward KL {one.baseline.mean:.4f}, JSD"
        row += f" {one.value.mean:.4f}: {one.difference.mean:+.4f} ± {one.difference.error:.4f}"
        print(f"{row} ({abs(one.errors):.0f} standard errors)")

# %%
from llmcourse.speculative import theory

cost = draft.num_parameters / base.num_parameters
costs = {f"c = {cost:.2f} by bytes": (cost, theory.constant)}
if timed := [row for row in recorded.raw_rows("distill_draft") if "c" in row]:
    c, v = (sum(row[name] for row in timed) / len(timed) for name in "cv")
    label = f"c = {c:.2f} and verifying {v:.2f}, recorded on {timed[0]['device']}"
    costs[label] = c, lambda n: v if n > 1 else 1.0
print("speed-up by theory, with the best draft length, for " + "; ".join(costs))
for alpha in (0.55, 0.60, 0.65, 0.70, 0.75, 0.80):
    row = f"    α = {alpha:.2f}"
    for c, verify in costs.values():
        gamma = theory.best_draft_length(alpha, c, 16, verify)
        row += f"   γ = {gamma}, {theory.speed_up(alpha, gamma, c, verify):.2f} ×"
    print(row)

# %% [markdown]
# A model that was trained for ten thousand steps is not moved far by a dozen, and the first of them partly disturb
# it. Compare the two losses with each other, seed by seed: JSD has the higher acceptance, forward KL the lower KL. A
# loss is a wish; say the right one. Theory tells what acceptance is worth: the higher it is, the more the next step
# brings, since longer drafts pay as well. But on the H200 a pass of `draft` costs twice its share of the bytes, and
# reading several tokens more than one: there drafts pay only from an acceptance of nearly 0.7 on. What a whole
# training brings was recorded, for two targets: `base`, and one of 923 M parameters that was trained for it.
# *Predict* with which of the two the same draft gains more; the pictures stand at the end of 6.11.
#
# ## 6.11 A student in 3 bits
#
# Chapter 5 stopped where rounding hurts: 3 bits. A student need not be smaller in parameters, it may be the same
# model in fewer *bits*. It rounds its weights on every way forward, and the gradient goes to the weights before
# rounding, as if rounding were not there (the straight-through estimator); the teacher is the model before rounding.
# This is *quantization-aware distillation* (LLM-QAT, Liu et al. 2023). *Predict*: which share of the KL that rounding
# cost do fourteen steps win back? And is the teacher needed, or would the text do?

# %%
from llmcourse.quantization.fake_quant import fake_quantized, trained_weights
from llmcourse.quantization.models import quantize

small = family["small"][0]
rounded = fake_quantized(small, "int3")
ways = {"rounded": rounded}
for name, response in {"by the text": None, "by its teacher": Response()}.items():
    ways[name] = trained(rounded, small, text, 14, 0.0004, response=response)
lost = {domain: one.kl.mean for domain, one in told(rounded, teacher=small).items()}
for name, student in ways.items():
    found = ((one, 1 - one.kl.mean / lost[one.domain]) for one in told(student, teacher=small).values())
    print(f"{name:15}" + "; ".join(f"{one.domain} KL {one.kl}, won back {won:.0%}" for one, won in found))
packed = quantize(trained_weights(ways["by its teacher"]), "int3")
rows = held["prose"][:256].view(2, 128)
print("packed in 3 bits, the same function:", torch.equal(packed(rows), ways["by its teacher"](rows)))

# %%
from llmcourse.figures.draft_gain import by_target, plot_draft_gain

called = {"target": "a target of 923 M parameters"}
for rows in by_target(recorded.raw_rows("distill_draft")) or [[]]:
    name, steps = (rows[0]["teacher"], rows[0]["steps"]) if rows else ("no target", 0)
    title = f"A draft of {called.get(name, name)} before and after {steps:,} steps"
    display(plot_draft_gain(rows, title, domains=("prose", "poetry", "code")))
lines = recorded.raw_rows("distill_quantized")
for row in {(row["scheme"], row["way"], row["domain"]): row for row in lines}.values():
    what = ", ".join(str(row[name]) for name in ("model", "scheme", "way", "domain"))
    print(f"{what}: KL {row['kl']:.4f}, recorded on {row['device']}")
if not lines:
    print("Longer runs in few bits are not recorded yet.")

# %% [markdown]
# First the live run: fourteen steps win back a quarter to two fifths by the teacher, a sixth to three tenths by the
# text.
#
# Ten thousand steps raise the acceptance by `base` by 0.03 to 0.04: two layers of width 128 had said nearly all that
# they can say of `base` before, for both learned from the same text. The large target says something else than that
# text does; 700 steps of listening to it bring 0.17 to 0.28. So a draft is to be taught by *its* target, the more so
# the less target and text have in common. And mind the right side: greedily `base`'s draft is faster by 4 % at most,
# in code. There it counts who has the same *favourite*, not how much of the probability is shared; and with the
# recorded $c$ of 6.10 a draft pays in code, a little in prose, and costs in verse. The draft that ships with the
# course is the one before.
#
# GPTQ (chapter 5) chose codes so that each *layer* loses least, without a single gradient; here all layers learn
# together to make up for each other, for the *distribution* at the end. It costs a training, and it needs one only
# once. In the recorded lines, `base` in 3 bits, it wins back 57 to 71 % of what plain rounding cost. Its KL is more
# than a fifth below that of GPTQ in prose, and less than a hundredth in verse and code: for a model of this size GPTQ
# is hard to beat, and takes seconds. The text alone (`text`) wins back 22 to 52 %: here the teacher *is* what is
# wanted.
#
# # Part five: the course on one model
#
# ## 6.12 Everything at once
#
# One model, `base`, on the machine at hand, and what each chapter did to it, one on top of the other or side by side
# where they exclude each other. Each step stands beside its own roofline: the tokens a second that its bytes and FLOPs
# would allow on this machine. And each says what it did to the text: the share of it that is still the model's own,
# token by token, and KL and favourites where distributions changed. The draft is the one that 6.10 taught. *Predict*
# before you run it: which step brings most here? Which of them will be *slower* than the one before, on a CPU? Which
# of them change the text?

# %%
from llmcourse.pipeline import STAGES, Pipeline

device = hardware.default_device()
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
here = hardware.measure_ceilings(device)
placed = [copy.deepcopy(model).to(device, dtype) for model in (base, after["JSD(0.5)"])]
texts = [
    tokenizer.encode_prompt(opening) for opening in (prompts.PROSE[1], prompts.VERSE[1], prompts.CODE[1])
]
sizes = {"new_tokens": 24, "texts": 8, "max_windows": 4}
stages = []
print(f"base on {here.name}")
for stage in progress.bar(Pipeline(*placed, texts, held, here, **sizes).run(), "stages", total=len(STAGES)):
    stages.append(stage)
    print(stage)

# %%
from llmcourse.figures.pipeline_steps import plot_pipeline, runs

title = "The course, one text at a time but for batching"
about = {"device": here.name, "target": "base", "drafter": "the draft of 6.10"}
display(plot_pipeline([stage.row() | about for stage in stages], title, live=True))
for rows in runs(recorded.raw_rows("pipeline")):
    display(plot_pipeline(rows, title))
for row in recorded.raw_rows("pipeline"):
    if "step_ms" in row:
        print(f"Llama-3-8B's shape, {row['stage']}: {row['step_ms']:.2f} ms a step", end=", ")
        print(f"{row['ratio_limit']:.0%} of its roofline")
headline = recorded.recorded("pipeline_llama3_8b")
print("\n".join(map(recorded.told, headline)) or "The joined pipeline is not recorded on a GPU yet.")
for row in headline:
    print(f"    {row['int4_alone']:.2f} × by int4 alone, without drafts")

# %% [markdown]
# How to read it. *Every text anew* is the loop of chapter 1, and the cache of chapter 2 is what makes any of the rest
# possible. What comes after that depends on the machine. On a CPU `base` fits into its caches, and low-bit weights are
# unpacked by plain operations, so that they cost time (chapter 5); speculation pays where a pass over five tokens
# costs about as much as over one, which a CPU does not give away (chapter 4). That is why each step has to be measured
# beside its *own* limit: a share of the roofline says how good an implementation is, a speed-up only says what it was
# compared with.
#
# The second picture is `base` on an H200. There a step of so small a model is launches, not bytes: the cache alone
# brings nothing, the engine, whose step is one graph, nearly forty times, and batching five times that. But nothing
# comes near its roofline, so int4 and drafts have no bytes to spare and only add launches: both are slower than the
# engine alone. (The cache of few bits is read by the ordinary model, on either machine: it saves memory, chapter 5,
# not time.)
#
# At the shape of Llama-3-8B bytes are what is short, and there the methods add up: on an H200 int4 alone is twice as
# fast as our own decoding in bf16, and with a distilled draft it is 5.6 times. (Steps were timed on weights of that
# shape, drawn at random; how many drafts stand was measured with the pair of 6.10, the target of 923 M and its
# draft.)
#
# And quality: everything down to speculation writes the very text of the model, in 16 bits but for tokens that are as
# good as equal. What quantization changes is seen by KL, most by weights in 4 bits, hardly by the cache; and drafts
# do not add to it: speculation keeps the text of whatever model it verifies with.
#
# ## 6.13 What goes wrong
#
# | belief | where it fails | what you saw |
# |---|---|---|
# | soft labels are a nicer version of the text | on average they say the same; what they save is noise | 6.1 |
# | a high temperature shows more dark knowledge | it spends the student on dust | 6.2 |
# | $T^2$ is a detail, or mends all | without it a warm teacher has no say beside hard labels; with it, less than at $T = 1$ | 6.2 |
# | KL is KL | one direction covers, the other seeks | 6.3 |
# | the top $k$, renormalised, are nearly the teacher | their minimum is a student who is too sure | 6.4 |
# | features are richer, so they help more | other widths need a $\Phi$, and heads have to fit | 6.5, 6.6 |
# | one run each shows which is better | compare seed by seed, and count standard errors | 6.6 |
# | a student that is good on given text is good on its own | it is judged where it goes on | 6.7 |
# | the teacher is right | it was wrong about text that it did not know | 6.8 |
# | a better loss of the teacher is all that counts | its calibration is inherited | 6.8 |
# | temperature in the loss cures a teacher that is too sure | both sides are divided: the minimum stays | 6.8 |
# | distillation is free, it is only a loss | the teacher reads every batch, and $V$ is large | 6.9 |
# | the lowest KL is the best draft | acceptance is another distance | 6.10 |
# | after rounding nothing can be done | train through it | 6.11 |
# | all speed-ups multiply | they share one bottleneck; measure them joined | 6.12 |
#
# **On the slides.** That responses are compared by KL is usual, but which KL, and at which temperature, is the choice
# that decides what a small student gives up (6.3); the slide does not say that the factor $T^2$ belongs to it. That
# features are richer than the output is true of what they hold, and no promise that they help: a projection has to be
# learned as well, and layers have to be paired (6.5).
#
# ## Lab
#
# [Lab 6](../labs/06_distillation.ipynb) has you build the parts: soft labels, the loss with its temperature, the other
# direction, the mix with hard labels, a stored teacher, a projection, a whole training step, calibration, and what a
# table of results bears out. To warm up, here in this notebook:
#
# 1. (10 min) In 6.3 descend: centre and width as `place`, begun at 1.8 and 0.6, and 1,500 steps of
#    `torch.optim.Adam([place], lr=0.01)` on `divergence_of(…, log_p, bump(*place).log_softmax(-1))`. Which losses
#    leave the smaller peak, and which stay there though the grid knows better?
# 2. (10 min) In 6.1 replace `draft` by `small`. Is a soft label worth more or fewer hard ones now? Why?
# 3. (10 min) In 6.6 add features beside the text, without the response:
#    `{"response": None, "features": FeatureWeights(project=False)}`.
# 4. (15 min) In 6.6 take `pruned(family["small"][0], (1, 4))` as the student: its width is 192, so leave `project` at
#    its default. Do features still help?
# 5. (10 min) In 6.8 mend the teacher that is too sure, with a temperature for it alone or with hard labels.
# 6. (15 min) In 6.11 go down to `int2`. How much of the damage is undone after 14 steps, after 60?
#
# ## Summary
#
# - A soft label is the mean of all the hard ones that a teacher would have written: the same direction without the
#   noise; $T^2$ keeps its weight where $T$ is large, and the divergence says what a small student gives up.
# - Response first, then features where widths and layers fit, own text where the student has to go on by itself; and compare
#   at equal tokens, seed by seed. A teacher hurts where it is wrong or too sure.
# - Distillation joins the course: a better draft for chapter 4, lost bits back for chapter 5; and what all chapters bring together is measured
#   joined, each step beside its own roofline.
#
# **Sources** Hinton et al. 2015 (soft labels, $T^2$) · Romero et al. 2015 (FitNets: $\Phi$) · Sun et al. 2019 (PKD) ·
# Jiao et al. 2020 (TinyBERT) · Sanh et al. 2019 (DistilBERT) · Wang et al. 2020, 2021 (MiniLM) · Kornblith et al. 2019
# (CKA) · Gu et al. 2024 (MiniLLM: reverse KL) · Agarwal et al. 2024 (GKD: JSD, own text) · Anshumann et al. 2025
# (stored teachers) · Cho and Hariharan 2019, Mirzadeh et al. 2020 (capacity gap) · Guo et al. 2017 (calibration) ·
# Hsu et al. 2024 (Liger: fused losses) · Zhou et al. 2024 (DistillSpec) · Leviathan et al. 2023 (acceptance) · Bengio
# et al. 2013 (straight-through) · Liu et al. 2023 (LLM-QAT)
