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
# # Chapter 4 · Speculative decoding, Medusa and early exit
#
# A decoding step reads all the weights, and the arithmetic waits (chapter 2). Chapter 3 filled the idle units with the
# texts of *other* readers. But what if there is one reader, who would like to see the text sooner? Then the units can be
# filled with guesses about that reader's own next tokens: cheap ones, checked by the large model, several in one pass.
# Done right, not one token of the text changes, and that can be proved.
#
# **When you have worked through this chapter you can**
#
# - state the acceptance rule and its residual, compute both by hand, and prove that the text is the target's,
# - predict tokens a step and speed-up from $\alpha$, $\gamma$ and $c$, and choose $\gamma$,
# - say for a kind of text and a drafter how often drafts will stand, and why,
# - draft with a smaller model, by lookup, and with the target's own first layers,
# - name the loads and settings under which speculation is slower than decoding,
# - build a cascade: train its judge, choose thresholds on held-out questions, and tell a gain from throwing dice.
#
# **Time** about 50 minutes for this part; its cells run in under two minutes.
# **Hardware** any laptop; the speed of large models is predicted here, measured on a GPU, and recorded where there is one.
#
# | symbol | term | 中文 |
# |---|---|---|
# | | speculative decoding | 推测解码 |
# | $p,\ q$ | distributions of the target and of the drafter | 大模型的分布,小模型的分布 |
# | $\gamma$ | drafts a step | 每步草稿词元数 |
# | $\min(1, p/q)$ | chance that a draft stands: verify, reject, correct | 验证,拒绝,修改 |
# | $p' \propto \max(0, p - q)$ | residual, which corrections are drawn from | 残差分布 |
# | $\beta = \sum \min(p, q)$; $\alpha$ | overlap at one place; its mean, the acceptance | 重叠度;接受率 |
# | $c$ | cost of a draft, in one-token passes of the target | 草稿的相对开销 |
# | $v(n)$ | cost of a pass over $n$ tokens, in the same unit | 验证的相对开销 |
# | | self-speculation, lookup | 自推测,查找 |
# | | cascade decoding, judge (a binary classifier), threshold | 级联解码,二分类器,阈值 |

# %% tags=["nbval-check-output"]
import math

import torch

from llmcourse import decoding, hardware, pretrained, prompts, roofline, speculative, timing
from llmcourse.costs import LLAMA_3_8B, Step
from llmcourse.decoding import SamplingParams, generate
from llmcourse.figures import kernel_bars, recorded, widgets
from llmcourse.speculative import ModelDrafter, measured

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
device, h200 = hardware.default_device(), hardware.datasheet("H200")
double = {"device": device, "dtype": torch.float64}
family = {name: pretrained.load(name, **double) for name in ("draft", "small", "base")}
(base, tokenizer), draft = family["base"], family["draft"].model
encode = tokenizer.encode_prompt
for name, (model, _) in family.items():
    print(f"{name:6}{model.num_parameters / 1e6:5.1f} M parameters, {model.config.num_layers} layers")

# %% [markdown]
# # Part one: several tokens for one pass
#
# ## 4.1 A pass that reads five tokens costs hardly more than one
#
# Everything in this part hangs on one number: what a pass over $n$ tokens takes, in passes over one. *Predict*, before
# you run the cell: how many tokens can Llama-3-8B read on an H200 before its pass takes a twentieth longer? The cell
# asks the roofline, then measures `base` here. What a GPU has made of eight tokens is drawn where it is recorded.

# %%
def predicted_pass(batch, n):
    return roofline.predict_step(LLAMA_3_8B, Step.chunk(batch, n, 1024), h200).time_s


def pass_s(model, batch, n, past=128):
    cache = model.new_cache(batch, past + n)
    tokens = torch.randint(model.config.vocab_size, (batch, past + n), device=device)
    model(tokens[:, :past], cache)

    def run():
        model(tokens[:, past:], cache)
        cache.rollback(n)

    return timing.measure(run, device=device, repeats=9).median_s


# %%
MY_GUESS = 8  # tokens
most = max(n for n in range(1, 257) if predicted_pass(1, n) <= 1.05 * predicted_pass(1, 1))
print(f"Llama-3-8B on an H200, by the roofline: {most} tokens within 1.05 passes; your guess: {MY_GUESS}")
fast = {name: pretrained.load(name, device=device).model for name in family}  # fp32: for whatever is timed
with torch.no_grad():
    taken = {n: pass_s(fast["base"], 1, n) for n in range(1, 10)}
    cost = {name: pass_s(fast[name], 1, 1) / taken[1] for name in ("draft", "small")}
verify_cost = {n: time_s / taken[1] for n, time_s in taken.items()}
print(f"base, {hardware.this_machine(device).name}:", end="")
print("".join(f"  v({n}) = {v:.2f}" for n, v in verify_cost.items()))
for name, c in cost.items():
    print(f"{name}: {family[name].model.num_parameters / base.num_parameters:.0%} of the weights, c = {c:.2f}")
eight = ("verify8_llama3_8b",)
kernel_bars.plot_kernels(recorded.all_of(eight), "Eight tokens against one, Llama-3-8B", eight)

# %% [markdown]
# A model of a few million weights is no memory-bound giant: on a CPU its products are soon bound by arithmetic, and each
# operation has a start that costs as much for the drafter as for the target. So $v$ rises earlier than on paper, and $c$ is
# larger than the share of the weights. Both belong into the prediction, and we keep them.
#
# ## 4.2 The rule, by numbers
#
# The slide says: the small model writes 3 to 5 tokens, the large one *rejects and modifies* (拒绝与修改), and the quality
# does not suffer. How must one reject for this to be true? Draft $x \sim q$, and (Leviathan et al. 2023; Chen et al. 2023)
#
# $$\text{keep } x \text{ with probability } \min\!\Big(1, \frac{p(x)}{q(x)}\Big), \quad\text{else draw from}\quad
# p'(x) = \frac{\max(0,\, p(x) - q(x))}{\sum_{x'} \max(0,\, p(x') - q(x'))} .$$
#
# A token arrives as a draft with $q \cdot \min(1, p/q) = \min(p, q)$. A draft falls with $1 - \sum \min(p, q) = \sum
# \max(0, p - q)$, which is just what $p'$ is divided by; so a token arrives as a correction with $p - \min(p, q)$. Together: $p$.
#
# *Predict* for the four drinks of the cell: how often does a draft stand, and what may a correction be? Which token would
# come too often if a correction were drawn from $p$ itself?

# %% tags=["nbval-check-output"]
drinks = ("coffee", "tea", "water", "ink")
p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
q = torch.tensor([0.3, 0.5, 0.1, 0.1], dtype=torch.float64)
overlap, left = speculative.acceptance(p, q), speculative.residual(p[None], q[None])[0]
as_draft, as_correction = torch.minimum(p, q), (1 - overlap) * left
naive = as_draft + (1 - overlap) * p
print(f"a draft stands with β = {overlap:.2f}\n")
print("          q     p   stands    as draft + as correction = together   corrected from p")
for row, drink in enumerate(drinks):
    stands = min(1.0, (p[row] / q[row]).item())
    both = as_draft[row] + as_correction[row]
    print(f"{drink:8}{q[row]:.2f}  {p[row]:.2f}   {stands:4.0%}  ", end="")
    print(f"{as_draft[row]:11.2f}   {as_correction[row]:13.2f}   {both:10.2f}   {naive[row]:16.2f}")

# %% [markdown]
# *Ink* is drafted now and then and never comes through; *coffee*, which the drafter underrates, is what most corrections
# are. Drawn from $p$, corrections would bring the drafter's favourites a second time: too much tea.
#
# ## 4.3 Proof by counting
#
# One token is easily believed. Several drafts in a row, each given those before it, and a *bonus* token where all stand, are
# not. So leave nothing to chance: three tokens $a, b, c$, probabilities in quarters that depend on the token before, $\gamma =
# 2$. A draft then stands or falls at a multiple of 1/12 of its uniform number, and corrections change there, too: 12
# numbers stand for all. Every draft and every triple of numbers goes through `verify_drafts`, the function that this package
# decodes with; where a step brings fewer than three tokens the target goes on; and everything is added up in fractions.
#
# Beside it two wrong rules. *Predict*: which of them is further off?

# %%
from collections import Counter
from fractions import Fraction
from itertools import product

from llmcourse.decoding.sampling import pick
from llmcourse.speculative import Verdict, verify_drafts

P = torch.tensor([[2, 1, 1], [0, 3, 1], [1, 1, 2]]) / 4  # a row for each token before
Q = torch.tensor([[1, 3, 0], [2, 1, 1], [1, 2, 1]]) / 4
numbers = torch.cartesian_prod(*3 * [(torch.arange(12) + 0.5) / 12])  # for two drafts and what follows


def chance(model, text, last=0):
    """Of a text after a token, as an exact fraction."""
    return math.prod(Fraction(model[a, b].item()) for a, b in zip((last, *text), text, strict=False))


# %%
def distribution(rule):
    """Of three tokens: a step of two drafts, and the target goes on where it brought fewer."""
    found = Counter()
    for drafts in (pair for pair in product(range(3), repeat=2) if chance(Q, pair)):
        p, q = (side.expand(len(numbers), -1, -1) for side in (P[[0, *drafts]], Q[[0, drafts[0]]]))
        rows = torch.tensor(drafts).expand(len(numbers), 2)
        ends = Counter(map(tuple, rule(p, q, rows, numbers).emitted(rows)))
        for text, count in ends.items():
            for rest in product(range(3), repeat=3 - len(text)):
                share = Fraction(count, len(numbers)) * chance(Q, drafts)
                found[*text, *rest] += share * chance(P, rest, text[-1])
    return found


# %% tags=["nbval-check-output"]
def always_accept(p, q, drafts, u):
    return verify_drafts(torch.cat((q, p[:, -1:]), 1), q, drafts, u)


def correct_from_p(p, q, drafts, u):
    ends = verify_drafts(p, q, drafts, u).num_accepted
    return Verdict(ends, pick(p[torch.arange(len(p)), ends], u[:, -1]))


wanted = {text: chance(P, text) for text in product(range(3), repeat=3)}
for rule in (verify_drafts, always_accept, correct_from_p):
    found = distribution(rule)
    off = sum(abs(found[text] - wanted[text]) for text in wanted) / 2
    print(f"{rule.__name__:15}{len(wanted)} texts, together {found.total()}, {off} of it misplaced")

# %% [markdown]
# Not "close to zero": zero. Nothing in the proof asks where $p$ and $q$ come from, so it holds for any sampling settings, if
# *both* are the distributions that tokens are really drawn from: after temperature, top-k, top-p and penalties, and a
# penalty at the third draft has seen the first two. Greedy decoding is the case in which $p$ is certain: a draft stands if it
# is the target's favourite. (Sampled texts are equal in distribution, not token for token: chance is spent in another way.)
#
# ## 4.4 What it brings: $\alpha$, $\gamma$, $c$
#
# Let each draft stand with chance $\alpha$, whatever the others did. Of $\gamma$ drafts the first $k$ stand with $\alpha^k$, and the
# target adds one token always. A step costs $\gamma$ drafts and a pass over $\gamma + 1$ tokens:
#
# $$E = 1 + \alpha + \dots + \alpha^\gamma = \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha}, \qquad
# \text{speed-up} = \frac{E}{\gamma c + v(\gamma + 1)} .$$
#
# *Predict*: four drafts, four out of five stand, a draft costs a tenth of a pass, and verifying is free ($v = 1$). How many
# tokens does a step bring, and how many times faster is the text? The slide promises "about two times" (两倍左右) with 3 to 5
# drafts: the cell says which $\alpha$ that takes.

# %% tags=["nbval-check-output"]
MY_GUESS = 3.0  # times faster
tokens, gain = speculative.expected_tokens(0.8, 4), speculative.speed_up(0.8, 4, 0.1)
print(f"α = 0.8, γ = 4, c = 0.1: {tokens:.2f} tokens a step, {gain:.2f} times faster; your guess: {MY_GUESS}")
hundredths = [n / 100 for n in range(101)]
for gamma in (3, 4, 5):
    least = [min(a for a in hundredths if speculative.speed_up(a, gamma, c) >= 2) for c in (0.0, 0.1, 0.2)]
    print(f"γ = {gamma}: twice as fast from", ", ".join(f"α = {a} (c = {c})" for a, c in zip(least, (0, 0.1, 0.2))))
print("\nbest γ up to 16, and the speed-up with it")
for c in (0.02, 0.1, 0.3, 0.6):
    best = {a: speculative.best_draft_length(a, c, 16) for a in (0.3, 0.5, 0.7, 0.8, 0.9)}
    row = (f"α = {a}: {g:2}, {speculative.speed_up(a, g, c):.2f}" for a, g in best.items())
    print(f"c = {c:4}   " + "   ".join(row))

# %% [markdown]
# A best $\gamma$ of 0 means: do not draft. With $v = 1$ drafting pays if and only if $\alpha > c$. Read a row from left to right:
# what raises $\alpha$ from good to very good is worth more than what raises it from poor to good, and only then do long drafts
# pay. "Twice as fast" is no property of the method, but of a pair of models, a text and a machine.
#
# ## 4.5 A text in three colours
#
# The lecture prints a text ("japan ' s benchmark …") line by line, each line a step: what the small model wrote (小模型生成),
# what the large one rejected (大模型拒绝), and what it wrote instead (大模型修改). Here `draft` writes for `base`, greedily.
# Which words are left to the large model? Guess before you look; then count how many of the tokens it wrote itself.

# %%
from llmcourse.figures.speculation_plot import told
from llmcourse.figures.speculation_strip import line_by_step
from llmcourse.figures.speculation_trace import speculation_trace

opening = prompts.PROSE[11]
speculating = speculative.stream(
    base, [encode(opening)], drafter=ModelDrafter(draft), tokenizer=tokenizer, max_new_tokens=24
)
trace = speculation_trace(opening, list(speculating), tokenizer.decode, tokenizer.label)
print(told(trace.phases[-1].counts))
(plain,) = generate(base, [encode(opening)], tokenizer=tokenizer, max_new_tokens=24)
print("what the target writes alone:", opening + plain.text == trace.text())
line_by_step(trace)

# %% [markdown]
# Endings of words and set phrases are drafted; the words that carry the story are mostly the target's. Now play a *sampled* text
# step by step. At each rejection the bars show $p$, $q$ and the residual that the correction is drawn from. Set the
# temperature to 0 and see both sides become certain; let `base` draft for itself and see nothing fall; then look for a
# draft that stands although $p < q$.

# %%
widgets.TracePlayer(family | {"base": family["base"]}, "Once upon a time there was", target="base", drafter="draft")
