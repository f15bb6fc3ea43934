# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] name="01-title"
# # Lab 1 · Decoding
#
# You build what [chapter 1](../notebooks/01_decoding.ipynb) used: the distribution, the loop, truncation,
# penalties, beam search and contrastive decoding; at the end you mend a sampler that somebody else wrote.
# There are {{ exercises }} exercises for **{{ points }} points**, about {{ minutes }} minutes in all; the first
# are warm-ups. Any laptop will do, nothing is downloaded.
#
# ## How to work
#
# 1. **Run** the setup cell below. *Run all* never stops at what you have not written yet, so use it freely.
# 2. **Write** your answer in place of `raise NotImplementedError(…)`. Keep the first line, `# Exercise 01.…`,
#    and the function's name and parameters: your answer is found by them. Helpers may stand in the same cell.
# 3. **Check** it with the cell below it: got, expected, the first difference, what your function printed. The
#    call after *inputs* gives you the arguments of the case that failed, to play with in a cell of your own.
# 4. **Hints** come with a wrong answer, a clearer one each time. A slip, such as a misspelt name or a wrong
#    dtype, is named as one, and uses up no hint. The stars say how hard an exercise is, from ★, a warm-up, to
#    ★★★★★; skip one and come back if you like.
# 5. **Too long?** A call that the grader would not wait for is ended. In any other cell, and on Windows in all, `[*]` beside a
#    cell that should be done means an endless loop: press ■, mend it, run it again.
# 6. **Demonstrations** run your functions on the course's models, so that you see what they do to real text.
#    They give no points, and need no edit. The last cell shows your points so far.
#
# **How it is graded.** `check` draws its inputs from seeds that everybody knows. The grader asks the same
# exercises with seeds of its own, so an answer that only knows the cases of `check` earns nothing. Each
# exercise is graded by itself, in a fresh process that runs your cells down to it, and is right or not. An
# answer may use all of PyTorch and Python except where the exercise says otherwise, but not
# `llmcourse.decoding`, which is what you build. Check cells that were changed are replaced by the original ones.
#
# | symbol | term | 中文 | in code |
# |---|---|---|---|
# | $B,\ V$ | texts in the batch; tokens in the vocabulary | 批大小；词表大小 | `logits.shape` |
# | $u$ | tokens of the text so far | 词元 | `tokens`, `prompt` |
# | $l$ | logits | 对数几率 | `logits` |
# | $t$ | temperature | 温度 | `temperature` |
# | $k,\ p$ | limits of top-k and top-p | 截断参数 | `k`, `p` |
# | $c(v)$ | how often token $v$ occurs in the text | 出现次数 | |
# | $\theta$ | strength of the multiplicative penalty | 惩罚系数 | `theta` |
# | $\alpha$ | plausibility threshold | 合理性阈值 | `alpha` |
# | $\lambda$ | length penalty of beam search | 长度惩罚 | `length_penalty` |
# | $n$ | length of an n-gram; beams of a search | n 元；束宽 | `n`, `num_beams` |

# %% name="01-setup"
import torch

from llmcourse.grading import selfcheck
from llmcourse.grading.selfcheck import check

torch.set_num_threads(1)  # with tensors this small, two threads mostly wait for each other

# %% [markdown] name="01-models-text"
# **Demonstration.** The models of chapter 1, in double precision as there: what they write with your
# functions is then the same on every machine. `logits_of(tokens)` reads a text and gives the logits of the
# next token.

# %% name="01-models" tags=["demo"]
from llmcourse import pretrained
from llmcourse.grading.lab_view import once_written, points_so_far

(model, tokenizer), (amateur, _) = (pretrained.load(n, dtype=torch.float64) for n in ("base", "draft"))
end_token = model.config.eos_token_ids[0]
OPENING = "There was once upon a time a poor woodcutter"


@torch.no_grad()
def logits_of(tokens, model=model):  # (V,)
    return model(torch.tensor([tokens]))[0, -1]


# %% [markdown]
# {{ statement 01.softmax }}


# %%
# Exercise 01.softmax
def softmax_with_temperature(logits, temperature):
    """Probabilities (B, V) of logits (B, V), sharpened or flattened by the temperature."""
    ### BEGIN SOLUTION
    if temperature == 0:  # the limit: all mass on the largest, the lowest id of a tie
        first = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, first, 1.0)
    # exp of a large logit overflows; taking a row's maximum away changes nothing but that.
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    powers = torch.exp(shifted / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)
    ### END SOLUTION


# %%
check("01.softmax", softmax_with_temperature)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.softmax", softmax_with_temperature, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-softmax-text"
# **Demonstration.** The pot of chapter 1, at three temperatures.

# %% name="01-softmax-demo" tags=["demo", "nbval-check-output"]
with once_written(softmax_with_temperature):
    pot = logits_of(tokenizer.encode_prompt("I am sleepy. I start a pot of"))[None]
    for t in (0.5, 1.0, 1.5):
        largest = softmax_with_temperature(pot, t)[0].topk(5)
        pairs = zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        print(f"t = {t}: ", ", ".join(f"{tokenizer.label(token)} {share:.1%}" for token, share in pairs))

# %% [markdown]
# {{ statement 01.greedy_loop }}


# %%
# Exercise 01.greedy_loop
def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
    """The new tokens that follow the prompt, each the most probable one."""
    ### BEGIN SOLUTION
    text = list(prompt)  # a copy: the caller's list stays as it is
    for _ in range(max_new_tokens):
        token = int(logits_of(text).argmax())
        text.append(token)
        if token == end_token:
            break
    return text[len(prompt) :]
    ### END SOLUTION


# %%
check("01.greedy_loop", greedy_loop)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.greedy_loop", greedy_loop, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-greedy-loop-text"
# **Demonstration.** Your loop around a model, with `rule` in between: for now one that changes nothing, later
# your penalties. Does the text repeat itself?


# %% name="01-greedy-loop-demo" tags=["demo", "nbval-check-output"]
def continued(rule, opening=OPENING):
    def ruled(tokens):
        return rule(logits_of(tokens)[None], [tokens])[0]

    start = tokenizer.encode_prompt(opening)
    return opening + tokenizer.decode(greedy_loop(ruled, start, 40, end_token))


with once_written(greedy_loop):
    print(continued(lambda logits, tokens: logits))

# %% [markdown]
# {{ statement 01.top_k }}


# %%
# Exercise 01.top_k
def top_k_filter(logits, k):
    """Logits (B, V) with all but the k most probable of each row at -inf."""
    ### BEGIN SOLUTION
    k = min(k, logits.shape[-1])
    smallest_kept = logits.sort(dim=-1, descending=True).values[:, k - 1, None]  # (B, 1)
    return torch.where(logits >= smallest_kept, logits, -torch.inf)
    ### END SOLUTION


# %%
check("01.top_k", top_k_filter)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.top_k", top_k_filter, seed)
### END HIDDEN TESTS

# %% [markdown]
# {{ statement 01.top_p }}


# %%
# Exercise 01.top_p
def top_p_filter(logits, p):
    """Logits (B, V) with all outside the nucleus of each row at -inf."""
    ### BEGIN SOLUTION
    if p == 1:  # the running sum may reach 1 early, by rounding
        return logits.clone()
    falling, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = falling.cumsum(dim=-1) - falling  # mass of the tokens that come first
    keep = before < p
    keep[:, 0] = True
    # From sorted places back to token ids: place i of the order belongs to token order[i].
    keep = torch.zeros_like(keep).scatter_(-1, order, keep)
    return torch.where(keep, logits, -torch.inf)
    ### END SOLUTION


# %%
check("01.top_p", top_p_filter)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.top_p", top_p_filter, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-truncation-text"
# **Demonstration.** A number of tokens against a share of the mass: where the model is sure, and where it is
# not. Then three texts drawn with your functions, from careful to careless.

# %% name="01-truncation-demo" tags=["demo", "nbval-check-output"]
with once_written(top_k_filter, top_p_filter):
    for text in ("import numpy as", "I am sleepy. I start a pot of", "《静夜思》李白\n床前明月"):
        logits = logits_of(tokenizer.encode_prompt(text))[None]
        by_k = int(top_k_filter(logits, 40).isfinite().sum())
        by_p = int(top_p_filter(logits, 0.8).isfinite().sum())
        print(f"top-k 40 keeps {by_k} tokens, top-p 0.8 keeps {by_p:4} after {text!r}")

# %% name="01-draws-demo" tags=["demo"]
with once_written(softmax_with_temperature, top_p_filter):
    for p in (0.3, 0.8, 1.0):
        tokens, seed = tokenizer.encode_prompt(OPENING), torch.Generator().manual_seed(1)
        for _ in range(30):
            kept = top_p_filter(logits_of(tokens)[None], p)
            tokens.append(int(softmax_with_temperature(kept, 1.0).multinomial(1, generator=seed)))
        print(f"p = {p}: {tokenizer.decode(tokens[1:])}\n")

# %% [markdown]
# {{ statement 01.repetition_penalty }}


# %%
# Exercise 01.repetition_penalty
def repetition_penalty(logits, tokens, theta):
    """Logits (B, V) in which the tokens of each row's text are less likely."""
    ### BEGIN SOLUTION
    result = logits.clone()
    for row, text in enumerate(tokens):
        ids = sorted(set(text))  # each once, however often it occurs
        old = logits[row, ids]
        result[row, ids] = torch.where(old > 0, old / theta, old * theta)
    return result
    ### END SOLUTION


# %%
check("01.repetition_penalty", repetition_penalty)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.repetition_penalty", repetition_penalty, seed)
### END HIDDEN TESTS

# %% [markdown]
# {{ statement 01.presence_frequency }}


# %%
# Exercise 01.presence_frequency
def presence_frequency(logits, tokens, presence, frequency):
    """Logits (B, V), lowered for each token of a row's text, once and for every time it occurs."""
    ### BEGIN SOLUTION
    vocab = logits.shape[-1]
    texts = [torch.tensor(text, dtype=torch.long) for text in tokens]
    counts = torch.stack([torch.bincount(text, minlength=vocab) for text in texts]).to(logits.dtype)
    return logits - presence * (counts > 0).to(logits.dtype) - frequency * counts
    ### END SOLUTION


# %%
check("01.presence_frequency", presence_frequency)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.presence_frequency", presence_frequency, seed)
### END HIDDEN TESTS

# %% [markdown]
# {{ statement 01.no_repeat_ngram }}


# %%
# Exercise 01.no_repeat_ngram
def no_repeat_ngram(logits, tokens, n):
    """Logits (B, V) with every token at -inf that would complete an n-gram of its text again."""
    ### BEGIN SOLUTION
    result = logits.clone()
    for row, text in enumerate(tokens):
        last = len(text) - n  # where the last whole n-gram begins; negative if there is none
        suffix = text[last + 1 :]  # the n - 1 tokens that the next one would follow
        for start in range(last + 1):
            if text[start : start + n - 1] == suffix:
                result[row, text[start + n - 1]] = -torch.inf
    return result
    ### END SOLUTION


# %%
check("01.no_repeat_ngram", no_repeat_ngram)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.no_repeat_ngram", no_repeat_ngram, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-penalties-text"
# **Demonstration.** The text of exercise 01.greedy_loop again, with each of your remedies. Which one mends
# it, which does harm? Try other strengths.

# %% name="01-penalties-demo" tags=["demo", "nbval-check-output"]
REMEDIES = {
    "multiplied by 1.2": lambda logits, tokens: repetition_penalty(logits, tokens, 1.2),
    "presence 1": lambda logits, tokens: presence_frequency(logits, tokens, 1.0, 0.0),
    "frequency 0.5": lambda logits, tokens: presence_frequency(logits, tokens, 0.0, 0.5),
    "no 3-gram twice": lambda logits, tokens: no_repeat_ngram(logits, tokens, 3),
}
for name, rule in REMEDIES.items():
    with once_written(greedy_loop, rule):
        print(f"{name}: {continued(rule)}\n")

# %% [markdown]
# {{ statement 01.beam_search }}


# %%
# Exercise 01.beam_search
def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
    """The best texts as (new tokens, score), best first, at most num_beams of them."""
    ### BEGIN SOLUTION
    live, finished = [([], 0.0)], []
    for _ in range(max_new_tokens):
        log_probs = logits_of([prompt + tokens for tokens, _ in live]).double().log_softmax(dim=-1)
        sums = log_probs + torch.tensor([[total] for _, total in live], dtype=torch.float64)
        # Each beam ends in one way only, so among the best 2n extensions n go on.
        best = sums.flatten().topk(min(2 * num_beams, sums.numel()))
        extended = []
        for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(index, sums.shape[1])
            extension = ([*live[beam][0], token], total)
            if token != end_token:
                extended.append(extension)
            elif rank < num_beams:
                finished.append(extension)
        live = extended[:num_beams]
    scored = [(tokens, total / len(tokens) ** length_penalty) for tokens, total in finished + live]
    return sorted(scored, key=lambda text: text[1], reverse=True)[:num_beams]
    ### END SOLUTION


# %%
check("01.beam_search", beam_search)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.beam_search", beam_search, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-beam-search-text"
# **Demonstration.** Greedy search is one beam. Do four find something likelier, and how much do the four
# differ?


# %% name="01-beam-search-demo" tags=["demo", "nbval-check-output"]
@torch.no_grad()
def logits_of_all(texts):  # (len(texts), V), in one forward pass
    return model(torch.tensor(texts))[:, -1]


with once_written(beam_search):
    start = tokenizer.encode_prompt("He sat down by the fire and")
    for beams in (1, 4):
        for tokens, score in beam_search(logits_of_all, start, beams, 12, end_token, length_penalty=0.0):
            print(f"{beams} beams: log-probability {score:6.2f} {tokenizer.decode(tokens)!r}")

# %% [markdown]
# {{ statement 01.contrastive }}


# %%
# Exercise 01.contrastive
def contrastive_scores(expert_logits, amateur_logits, alpha):
    """Scores (B, V): expert minus amateur for plausible tokens, -inf for the others."""
    ### BEGIN SOLUTION
    difference = torch.log_softmax(expert_logits, dim=-1) - torch.log_softmax(amateur_logits, dim=-1)
    probable = torch.softmax(expert_logits, dim=-1)
    plausible = probable >= alpha * probable.max(dim=-1, keepdim=True).values
    return torch.where(plausible, difference, -torch.inf)
    ### END SOLUTION


# %%
check("01.contrastive", contrastive_scores)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.contrastive", contrastive_scores, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-contrastive-text"
# **Demonstration.** What the large model knows and the small one does not; then two texts, each token the one
# with the best score. With greedy search the large model falls into a loop in both: does the contrast help both?

# %% name="01-contrastive-demo" tags=["demo", "nbval-check-output"]
with once_written(contrastive_scores):
    start = tokenizer.encode_prompt("I am sleepy. I start a pot of")
    scores = contrastive_scores(logits_of(start)[None], logits_of(start, amateur)[None], 0.1)[0]
    for name, row in (("expert alone", logits_of(start)), ("contrastive", scores)):
        print(f"{name:13}", ", ".join(tokenizer.label(token) for token in row.topk(5).indices.tolist()))


def contrast(logits, tokens):
    return contrastive_scores(logits, logits_of(tokens[0], amateur)[None], 0.1)


with once_written(greedy_loop, contrastive_scores):
    for opening in (OPENING, "Happy families are all alike; every unhappy family"):
        print(f"{continued(contrast, opening)}\n")

# %% [markdown]
# {{ statement 01.find_the_bug }}

# %%
# Exercise 01.find_the_bug
# {{ starter 01.find_the_bug }}


### BEGIN SOLUTION
def sample_tokens(logits, uniform, temperature, p):
    """One token a row from the nucleus of softmax(logits / temperature)."""
    logits = logits / temperature  # first of all: the nucleus is one of the tempered distribution
    falling, ids = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass_before = falling.cumsum(-1) - falling
    kept = logits.gather(-1, ids).masked_fill(mass_before >= p, float("-inf"))
    cumulative = kept.softmax(-1).cumsum(-1)
    place = (cumulative <= uniform[:, None]).sum(-1, keepdim=True)
    return ids.gather(-1, place)[:, 0]


### END SOLUTION

# %%
check("01.find_the_bug", sample_tokens)
### BEGIN HIDDEN TESTS
for seed in (4711, 4712, 4713):
    selfcheck.require("01.find_the_bug", sample_tokens, seed)
### END HIDDEN TESTS

# %% [markdown] name="01-find-the-bug-text"
# **Demonstration.** The pot once more: how many tokens your own `top_p_filter` keeps, and how many different
# ones the sampler returns for numbers spread evenly over [0, 1). It can be fewer, never more.

# %% name="01-find-the-bug-demo" tags=["demo", "nbval-check-output"]
with once_written(top_p_filter, sample_tokens):
    pot = logits_of(tokenizer.encode_prompt("I am sleepy. I start a pot of"))[None]
    spread = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    for t in (0.5, 1.0, 1.5):
        kept = int(top_p_filter(pot / t, 0.6).isfinite().sum())
        drawn = sample_tokens(pot.expand(200, -1), spread, t, 0.6).unique()
        print(f"t = {t}: the nucleus has {kept:4} tokens; {len(drawn):3} different ones were drawn")

# %% [markdown] name="01-end"
# ## Points so far
#
# All answers as they now stand, examined as `check` does. Restart the kernel and run all before you hand the
# notebook in: the grader runs your cells from top to bottom, too.

# %% name="01-points" tags=["demo", "nbval-check-output"]
points_so_far("01_decoding", globals())
