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
# # Chapter 1 · Decoding
#
# A language model does not write. It gives, for the text so far, a probability to every token that
# could come next; *decoding* turns these distributions into text. The same model writes like a
# broken record or like a dreamer, depending on how the next token is chosen.
#
# **When you have worked through this chapter you can**
#
# - write the autoregressive loop and say what it costs per token,
# - choose between greedy search, beam search and sampling, and say what each one gets wrong,
# - compute by hand what temperature, top-k, top-p and their successors keep and cut,
# - recognise degeneration, measure it, and apply the penalty that mends it without doing harm,
# - explain contrastive decoding, and tell a text that it helps from one that it hurts.
#
# **Time** about 60 minutes of reading and playing; the cells run in under three minutes.
# The examples are those of a lecture on deploying large language models (大模型部署), where it has some.
# **Hardware** any laptop; two cores are enough. Nothing is downloaded: three small models, trained on
# English novels, Tang and Song poems and Python source, are part of the package.
#
# | symbol | term | 中文 |
# |---|---|---|
# | $u_1 \dots u_i$ | tokens of the text so far | 词元 |
# | $V$ | vocabulary, here 12,288 tokens | 词表 |
# | $l \in \mathbb{R}^V$ | logits, what the model computes | 对数几率 |
# | $P(u \mid u_{<i}) = \mathrm{softmax}(l)$ | next-token distribution | 下一词元的概率分布 |
# | $t$ | temperature | 温度 |
# | $k,\ p$ | limits of top-k and top-p | 截断参数 |
# | $n$ | beams, or the length of an n-gram | 束宽；n 元 |
# | $\alpha,\ \theta$ | strength of a penalty; α also the plausibility threshold | 惩罚系数 |
# | $c(v)$ | how often token $v$ occurs in the text so far | 出现次数 |
# | $\lambda$ | length penalty of beam search | 长度惩罚 |
# | $H = -\sum P \log P$ | entropy, in nats | 熵 |

# %% tags=["nbval-check-output"]
import torch

from llmcourse import decoding, hardware, pretrained, progress, prompts, timing
from llmcourse.decoding import SamplingParams, form, generate
from llmcourse.decoding.metrics import calibration, repetition_rate, self_bleu
from llmcourse.figures import distribution, diversity, recorded, temperature, text_strip, widgets

torch.set_num_threads(1)  # with models this small, two threads mostly wait for each other
device = hardware.default_device()
family = {name: pretrained.load(name, device=device, dtype=torch.float64) for name in ("base", "draft")}
(base, tokenizer), (draft, _) = family.values()
encode = tokenizer.encode_prompt  # token ids, after the <|endoftext|> that every training text began with
for name, (model, _) in family.items():
    print(f"{name:6}{model.num_parameters / 1e6:5.1f} M parameters, {model.config.num_layers} layers")

# %% [markdown]
# ## 1.1 The autoregressive loop
#
# > **repeat** $P = \mathcal{M}(u)$;  choose $u'$ from $P$;  $u \leftarrow u \oplus [u']$<br>
# > **until** $u'$ is the end token, or $u$ is as long as allowed
#
# Below is the loop in full, with the simplest of choices, $u_i = \arg\max_u P(u \mid u_{<i})$, and then
# `llmcourse.decoding.generate`: the same loop, for whole batches, with everything that this chapter adds. It
# also keeps what it computed for earlier tokens (the KV cache, chapter 2) instead of reading the whole text
# again for each new one. Same choices, same text. (The models are loaded in double precision: rounding then
# decides nothing, and your machine writes what this page shows.)


# %% tags=["nbval-check-output"]
def loop(model, tokens, max_new_tokens):
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([tokens], device=device))[0, -1]  # all of the text, again
        token = int(logits.argmax())
        if token in model.config.eos_token_ids:
            break
        tokens = [*tokens, token]
    return tokens


opening = "Once upon a time there was"
by_hand = loop(base, encode(opening), 40)
(cached,) = generate(base, [encode(opening)], tokenizer=tokenizer, max_new_tokens=40)
print("same tokens:", cached.prompt + cached.tokens == by_hand, "· ended by:", cached.finish_reason)
print(opening + cached.text)

# %% [markdown]
# ### Predict, measure, compare: how many tokens a second?
#
# Each new token needs every weight of the model once: that many bytes have to come from memory, and no
# program can be faster than they are delivered. With fp32 weights in main memory,
#
# $$\text{tokens per second} \;\le\; \frac{\text{bandwidth}}{4 \cdot \text{parameters}}.$$
#
# Commit yourself before you look: what `MY_GUESS` holds in the next cell is only our first guess. Put yours, for
# this machine, in its place before you run it. The cell after it measures, and shows guess, limit and
# measurement together.

# %%
MY_GUESS = 100  # tokens per second, for base on this machine

weight_bytes = base.num_parameters * 4
bandwidth = hardware.copy_bandwidth(device)  # GB/s read and written, measured now
limit = bandwidth * 1e9 / weight_bytes
print(f"{hardware.this_machine(device).name}: a copy moves {bandwidth:.0f} GB/s")
print(f"weights: {weight_bytes / 1e6:.0f} MB a token → at most {limit:.0f} tokens per second")


# %%
def tokens_per_second(source, count=128):
    def run():
        generate(source, [encode(opening)], max_new_tokens=count, eos_token_ids=())

    return count / timing.measure(run, device=device, warmup=1, repeats=3, progress="texts").median_s


speeds = {"limit: memory": limit, "your guess": MY_GUESS}
base_fp32, _ = pretrained.load("base", device=device)
speeds["without a cache"] = tokens_per_second(decoding.UncachedLogits(base_fp32))
speeds["with a cache"] = tokens_per_second(base_fp32)
title = f"base, one sequence, fp32, on this machine ({hardware.this_machine(device).name})"
recorded.plot_speeds(speeds, title, limit="limit: memory", unit="tokens/s")

# %% [markdown]
# Two things keep the loop from its limit. Without a cache every token reads the whole text again, and the
# loop falls behind further the longer the text becomes. With one, what is left is the cost of starting
# some two hundred small operations a token, which weighs little on a slow memory and very much on a
# GPU's. (More than 100 % is possible too, where the weights fit into a cache that is faster than memory.)
# Chapter 2 is about both. From here on our subject is not how fast, but *which* token.

# %% [markdown]
# ## 1.2 From logits to a choice
#
# "I am sleepy. I start a pot of ___": a large model gives *coffee* 0.681, *water* 0.119, *tea* 0.057.
# Ours has read novels of the nineteenth century. What does it expect in the pot?


# %% tags=["nbval-check-output"]
def next_logits(model, text):
    with torch.inference_mode():
        return model(torch.tensor([encode(text)], device=device))[0, -1].cpu()


pot = next_logits(base, "I am sleepy. I start a pot of")
pot_of = distribution.next_token(pot, pot, tokenizer.label)
distribution.plot_next_token(pot_of, "I am sleepy. I start a pot of …")

# %% [markdown]
# ## 1.3 Greedy search, and how it fails
#
# The most probable token at each step is not the most probable text: one good choice can lead into a
# dead end. Worse, what has just been written becomes likely to be written again. A loop that has closed
# confirms itself: compare how sure the model is of its first forty tokens and of its last forty, in prose and
# in code. The poem gets away, for it is over before a loop can close. In the strips the shade of a token shows
# its probability.

# %% tags=["nbval-check-output"]
OPENINGS = {"prose": prompts.PROSE[5], "verse": prompts.VERSE[7], "code": prompts.CODE[2]}
greedy = {}
for domain, text in OPENINGS.items():
    (greedy[domain],) = generate(base, [encode(text)], tokenizer=tokenizer, max_new_tokens=120)
    rate = repetition_rate(greedy[domain].tokens, n=4)
    sure = torch.tensor(greedy[domain].log_probs).exp()
    print(f"{domain}: {rate:.0%} of its 4-grams occurred before;", end=" ")
    print(f"mean probability {sure[:40].mean():.0%} at first, {sure[-40:].mean():.0%} at last")
for domain in ("prose", "verse"):
    display(
        text_strip.text_strip(tokenizer, greedy[domain].tokens, greedy[domain].log_probs, OPENINGS[domain])
    )

# %% [markdown]
# ## 1.4 Beam search
#
# Keep the $n$ most probable texts instead of one. Each is extended by every token, and the best $n$ of
# all extensions go on. At the end texts of different lengths compete by
# $\log P(u_1 \dots u_m) / m^{\lambda}$, where $\lambda$ is the length penalty (Wu et al. 2016, section 7,
# in the simpler form that libraries use). Below is the lecture's picture, $n = 2$ and two steps, with real
# probabilities; each box shows the log-probability of the text up to there. The sliders work once the cells
# below have run.

# %%
widgets.BeamTreeViewer(
    {"base": (base, tokenizer)}, "The old man sat down by the", num_beams=2, max_new_tokens=2
)

# %% [markdown]
# Does it find likelier texts, and are they better ones? Two facts, measured: the log-probability of the
# best text for growing $n$, and how alike the $n$ texts are that it returns (self-BLEU, 1 means the same).
# The last line draws five texts at random for comparison, and shows the likeliest of them.

# %% tags=["nbval-check-output"]
start = encode("He sat down by the fire and")
for n in (1, 2, 3, 5):
    found = decoding.beam_search(base, start, num_beams=n, max_new_tokens=24, num_return=n).hypotheses
    alike = f"self-BLEU {self_bleu([h.tokens for h in found]):.2f}" if n > 1 else ""
    best = tokenizer.decode(found[0].tokens)
    print(f"n = {n}: log-probability {found[0].log_prob:7.2f}  {alike:15}  …{best[-40:]!r}")
seeds = [torch.Generator().manual_seed(seed) for seed in range(5)]
drawn = generate(base, [start] * 5, generator=seeds, max_new_tokens=24)
alike = self_bleu([g.tokens for g in drawn])
print(f"drawn: log-probability {max(sum(g.log_probs) for g in drawn):7.2f}  self-BLEU {alike:.2f}")

# %% [markdown]
# A wider beam does find likelier text, and what the widest finds is a phrase that repeats: once the loop has
# begun, each round is cheaper than anything new. The $n$ texts differ in a token or two, because the beams soon share
# nearly all of their past, while five draws have little in common. Probable is not the same as good, which
# is why open-ended text is sampled and beam search is kept for tasks with one right answer.
#
# ## 1.5 Random sampling
#
# Draw the token: $u_i \sim P(u \mid u_{<i})$. *Predict*: of 10,000 draws from the lecture's table, how
# many will be *coffee*, and how far off may the count be? A count of $N$ draws has standard deviation
# $\sqrt{N p (1 - p)}$.

# %% tags=["nbval-check-output"]
POT = {"coffee": 0.681, "water": 0.119, "tea": 0.057, "rice": 0.017, "chai": 0.012, "strong": 0.008}
POT |= {"black": 0.008, "hot": 0.007, "oat": 0.006, "beans": 0.006, "soup": 0.005}
words = [*POT, *["…"] * 50]  # the rest of the mass, shared by fifty words
lecture = torch.tensor([*POT.values(), *[(1 - sum(POT.values())) / 50] * 50]).log()
N = 10_000
drawn = decoding.sample(lecture.expand(N, -1), torch.Generator().manual_seed(0))
for index, p in enumerate(lecture.exp().tolist()[:4]):
    count, deviation = int((drawn == index).sum()), (N * p * (1 - p)) ** 0.5
    off = abs(count - N * p) / deviation
    print(
        f"{words[index]:8} predicted {N * p:5.0f} ± {deviation:2.0f}   drawn {count:4}   off by {off:.1f} deviations"
    )

# %% [markdown]
# Of four counts, one as far off as two and a half deviations is seen once in twenty tries: remarkable, no
# proof of a fault. A test of a sampler must say how often it would accuse an honest one.
#
# ### Temperature
#
# $$P(u_j \mid u_{<i}) = \frac{\exp(l_j / t)}{\sum_{j'} \exp(l_{j'} / t)}$$
#
# Below 1 the likely become likelier, above 1 the unlikely catch up; $t \to 0$ is greedy search.

# %% tags=["nbval-check-output"]
temperature.plot_temperatures(temperature.temperature_family(pot, (0.0, 0.5, 1.0, 1.5), tokenizer.label))

# %% [markdown]
# Temperature makes a model over- or under-confident. Take text that the model did not see in training,
# the language reference inside Python, and ask at every place: how likely did it say its first choice
# was, and how often was that right? On the diagonal, promises are kept.

# %%
import pydoc_data.topics

reference = "\n".join(v for _, v in sorted(pydoc_data.topics.topics.items()))[:60_000]
ids = torch.tensor(tokenizer.encode(reference)[: 16 * 512 + 1])
rows, targets = ids[:-1].view(16, 512), ids[1:]
with torch.inference_mode():
    seen = torch.cat([base(r[None].to(device))[0].float().cpu() for r in progress.bar(rows, "rows")])
bins = {}
for t in (0.5, 1.0, 1.5):
    top, choice = (seen / t).softmax(-1).max(-1)
    bins[f"t = {t}"] = calibration(top, choice == targets)
temperature.plot_calibration(bins)

# %% [markdown]
# ### Top-k and top-p
#
# Every token keeps some probability, however absurd (the lecture's table has *happy* at 4.3e-6), and with
# 12,288 of them the absurd ones are drawn now and then. *Top-k* draws from the $k$ likeliest (Fan et al. 2018); *top-p* from the
# fewest whose probabilities reach $p$ (Holtzman et al. 2020). The lecture's $k = 3$ and $p = 0.8$
# on its table:

# %% tags=["nbval-check-output"]
nothing_yet = decoding.History.from_prompts([[0]])
for processor in (decoding.TopK(3), decoding.TopP(0.8), decoding.TopP(0.800001)):
    cut = decoding.apply([processor], lecture[None], nothing_yet)[0]
    kept = {w: round(p, 3) for w, p in zip(words, cut.softmax(-1).tolist(), strict=True) if p}
    print(f"{processor!s:12} keeps {kept}")
print("0.681 + 0.119 in fp32:", (torch.tensor(0.681) + torch.tensor(0.119)).item())

# %% [markdown]
# *coffee* and *water* have exactly 0.8 between them on paper; whether they suffice for $p = 0.8$ hangs
# on the last bits of a sum. Ask for a millionth more, and *tea* comes in. Do not build on such an edge.
#
# The difference that matters: $k$ is a number of tokens, $p$ a share of the mass. Where the model is sure
# $k = 40$ lets rubbish in, where it is not $k = 3$ cuts good words. Three successors adapt in other ways:
# *min-p* keeps what has at least $p$ times the top probability (Nguyen et al. 2024), *typical* sampling
# keeps tokens whose surprise is close to the entropy (Meister et al. 2023), *η-sampling* cuts below a
# threshold that falls with the entropy (Hewitt et al. 2022).
#
# Then play: in the explorer below cut tokens are pale and hatched, hollow bars are the model before your
# settings. *Step* draws a token with the seed, *undo* takes it back, and the text keeps its shades.

# %% tags=["nbval-check-output"]
RULES = {"top-k 3": decoding.TopK(3), "top-k 40": decoding.TopK(40), "top-p 0.8": decoding.TopP(0.8)}
RULES |= {
    "min-p 0.1": decoding.MinP(0.1),
    "typical 0.8": decoding.Typical(0.8),
    "eta 3e-4": decoding.Eta(3e-4),
}
for text in ("import numpy as", "I am sleepy. I start a pot of", "《静夜思》李白\n床前明月"):
    logits = next_logits(base, text)[None]
    print(f"{text!r}: entropy {decoding.entropy(logits).item():.2f} nats")
    for name, rule in RULES.items():
        kept = decoding.apply([rule], logits, nothing_yet) > -torch.inf
        share = logits.softmax(-1)[kept].sum().item()
        print(f"    {name:12} keeps {int(kept.sum()):4} tokens with {share:4.0%} of the mass")

# %%
widgets.SamplingExplorer(
    prompt="I am sleepy. I start a pot of", model="base", params=SamplingParams(top_p=0.3)
)

# %% [markdown]
# ## 1.6 Penalties on repetition
#
# Three remedies look at the text so far, $c(v)$ being how often token $v$ occurs in it:
#
# - *n-gram blocking* forbids any token that would complete an n-gram a second time,
# - the *presence* penalty lowers $l_v$ by $\alpha \cdot [c(v) > 0]$, the *frequency* penalty by
#   $\alpha \cdot c(v)$,
# - the *multiplicative* penalty divides positive logits by $\theta$ and multiplies negative ones
#   (Keskar et al. 2019).
#
# Slides often write these as $P(v) = l_v - \dots$; it is the **logit** that changes, before the softmax.
# Otherwise the result would be no distribution.

# %% tags=["nbval-check-output"]
REMEDIES = {
    "none": SamplingParams(temperature=0),
    "3-grams blocked": SamplingParams(temperature=0, no_repeat_ngram_size=3),
    "presence 1.0": SamplingParams(temperature=0, presence_penalty=1.0),
    "frequency 0.5": SamplingParams(temperature=0, frequency_penalty=0.5),
    "multiplied 1.2": SamplingParams(temperature=0, repetition_penalty=1.2),
}
for name, params in REMEDIES.items():
    settings = dict(params=params, max_new_tokens=96, tokenizer=tokenizer)
    (g,) = generate(base, [encode(OPENINGS["prose"])], **settings)
    print(f"{name:16}{repetition_rate(g.tokens):4.0%}  …{g.text[-72:]!r}")

# %% [markdown]
# All of them loosen the loop. But repeating is not always a fault: code has to write the same call again,
# and verse its measure. How much harm is done? Two checks need no taste: for code, the share of lines that
# form a valid program, counted from the top; for verse, the share of verses as long as the poem's first. And
# one example: with 3-grams blocked, `parser.add_argument(` may be written once.

# %% tags=["nbval-check-output"]
settings = dict(params=REMEDIES["3-grams blocked"], max_new_tokens=72, tokenizer=tokenizer)
(g,) = generate(base, [encode(prompts.CODE[5])], **settings)
print(prompts.CODE[5] + g.text)

# %%
DOMAINS = {"prose": prompts.PROSE[:8], "verse": prompts.VERSE[:8], "code": prompts.CODE[:8]}
FORM = {"code": form.parsed_share, "verse": form.regular_share}


def write(source, texts, params, max_new_tokens=64):
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(texts))]
    settings = dict(params=params, generator=seeds, eos_token_ids=(), tokenizer=tokenizer)
    return generate(source, [encode(text) for text in texts], max_new_tokens=max_new_tokens, **settings)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# %% tags=["nbval-check-output"]
for name, params in progress.bar(REMEDIES.items(), "remedies"):
    cells = []
    for domain in FORM:
        out = write(base, DOMAINS[domain], params, max_new_tokens=96)
        kept_form = mean(FORM[domain](t + g.text) for t, g in zip(DOMAINS[domain], out, strict=True))
        repeated = mean(repetition_rate(g.tokens) for g in out)
        cells.append(f"{domain}: repeated {repeated:4.0%}, form kept {kept_form:4.0%}")
    print(f"{name:16}" + "    ".join(cells))

# %% [markdown]
# Blocking does harm in both: fewer lines of code parse and fewer verses keep the measure, since it forbids what
# has to be said again. The three penalties help code, because this small model loops so badly without them, and
# leave verse about as it was. Eight texts a domain are few: try `DOMAINS` with all of `prompts.VERSE` before you
# believe a difference of a few per cent.
#
# ## 1.7 All strategies, measured
#
# Eight openings from each domain, 64 new tokens each. Three numbers: the share of 4-grams that occurred
# before in the same text (seq-rep-4, Welleck et al. 2020), the share of distinct bigrams over all texts
# (distinct-2, Li et al. 2016), and the mean log-probability under the model itself. *Predict* first: which
# strategy has the highest log-probability, and is it the one that you would like to read?

# %%
STRATEGIES = {
    "greedy": SamplingParams(temperature=0),
    "3-grams blocked": SamplingParams(temperature=0, no_repeat_ngram_size=3),
    "t = 0.7": SamplingParams(temperature=0.7),
    "top-k 40": SamplingParams(top_k=40),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "min-p 0.1": SamplingParams(min_p=0.1),
    "pure sampling": SamplingParams(),
}


def own_log_prob(g):  # mean over the new tokens, under the model itself, whatever chose them
    logits = base(torch.tensor([g.prompt + g.tokens[:-1]], device=device))[0, len(g.prompt) - 1 :]
    return logits.log_softmax(-1).gather(1, torch.tensor(g.tokens, device=device)[:, None]).mean().item()


# %% tags=["nbval-check-output"]
METRICS = {
    "repeated 4-grams": lambda out: mean(repetition_rate(g.tokens) for g in out),
    "distinct-2": lambda out: decoding.distinct_n([g.tokens for g in out], 2),
    "log-probability": lambda out: mean(map(own_log_prob, out)),
}
scores = []
for strategy, params in progress.bar(STRATEGIES.items(), "strategies"):
    for domain, texts in DOMAINS.items():
        out = write(base, texts, params)
        row = {metric: score(out) for metric, score in METRICS.items()}
        scores += [diversity.Score(strategy, domain, metric, value) for metric, value in row.items()]
        print(f"{strategy:16} {domain:6}", "  ".join(f"{name} {v:5.2f}" for name, v in row.items()))
diversity.plot_scores(diversity.score_table(scores), "What each strategy writes", "base, 8 texts a domain")

# %% [markdown]
# On average over the domains greedy search has the highest log-probability and the most repetition, and pure
# sampling the lowest log-probability. What people like to read lies between (Holtzman et al. 2020), among the
# truncated strategies; read some of it in the explorer. Blocking n-grams buys its zero with less likely
# text in prose and code; verse hardly pays in probability (in 1.6 it paid in measure). And the domains differ:
# whatever is cut off, sampled verse does not repeat, and sampled code always does.
#
# ## 1.8 Contrastive decoding
#
# A large model and a small one share their bad habits: both love *the* and repetition. What the large
# one knows and the small one does not shows in the difference. Li et al. 2022 (section 3) score
#
# $$s(v) = \log P_{\text{expert}}(v) - \log P_{\text{amateur}}(v)
# \quad \text{where} \quad P_{\text{expert}}(v) \ge \alpha \max_w P_{\text{expert}}(w),$$
#
# and cut all else: without this *plausibility constraint*, a token that both find absurd could win by
# being more absurd to the amateur. The lecture's example, 李时珍是湖北人，他出生于 ___: the expert gives 湖北
# 15 % and 明朝 10 %, the amateur 10 % and 0.1 %.

# %% tags=["nbval-check-output"]
expert = torch.tensor([[0.15, 0.10, 0.0003, 0.7497]]).log()  # 湖北, 明朝, a rare token, all others in many
amateur = torch.tensor([[0.10, 0.001, 0.000001, 0.898999]]).log()
for alpha in (0.1, 0.0):
    s = decoding.contrastive_logits(expert[:, :3], amateur[:, :3], alpha=alpha)[0]
    shown = ", ".join(f"{w} {v:.2f}" for w, v in zip(("湖北", "明朝", "rare"), s.tolist(), strict=True))
    print(f"α = {alpha}: {shown}")

# %% [markdown]
# With the constraint 明朝 wins; without it the rare token does. Now our own pair. Can you explain the score of
# *porter* (a dark beer), and what the amateur knows of it? Try a poem: 《静夜思》李白, a new line, 床前明月.

# %%
widgets.ContrastViewer(family, prompt="I am sleepy. I start a pot of", expert="base", amateur="draft")

# %% [markdown]
# Where does it help, and where does it hurt? The same openings, greedy each time, with the checks of
# section 1.6.

# %% tags=["nbval-check-output"]
contrastive = decoding.ContrastiveLogits(base, draft)
for domain, texts in progress.bar(DOMAINS.items(), "domains"):
    for name, source in (("expert alone", base), ("contrastive", contrastive)):
        out = write(source, texts, SamplingParams(temperature=0))
        line = f"{domain:6}{name:13} repeated {mean(repetition_rate(g.tokens) for g in out):4.0%}"
        line += f", log-probability {mean(map(own_log_prob, out)):6.2f}"
        if domain in FORM:
            line += (
                f", form kept {mean(FORM[domain](t + g.text) for t, g in zip(texts, out, strict=True)):4.0%}"
            )
        print(line)

# %% [markdown]
# In code it does most: far less is repeated, since looping is what the amateur does best, and more lines are
# valid. Prose gains a little. In verse it does harm: both models know that a comma comes after five or seven
# characters, the difference cancels what they agree on, and with it some of the measure. That is the price of the idea: *whatever* is easy is punished, also where the easy token
# is the right one.
#
# ## 1.9 What goes wrong
#
# | method | breaks when | what you saw |
# |---|---|---|
# | greedy, beam | text is open-ended: the likeliest text is a loop | 1.3, 1.4 |
# | temperature | it changes confidence everywhere, also where the model was right | calibration in 1.5 |
# | top-k | the distribution is flat (cuts good words) or sharp (keeps rubbish) | the six rules in 1.5 |
# | top-p | the distribution is flat: many unlikely tokens stay | the six rules in 1.5 |
# | n-gram blocking | repeating is right: calls in code, names, refrains | `add_argument` and verse in 1.6 |
# | penalties | the strength does not suit the text: too weak, and the loop goes on | frequency 0.5 in 1.6 |
# | contrastive | the amateur is right, and agrees with the expert | verse in 1.8 |
# | any sampling | one seed is no experiment: compare rates over many texts | 1.7 |
#
# ## 1.10 On a GPU
#
# The cells above run on a GPU as they stand. The loop of 1.1 is hardly faster there, or even slower:
# the GPU's memory could deliver the weights hundreds of times more often, and the GPU waits for Python to
# start the next small operation. Closing that gap is the subject of chapter 2. Recorded runs of the same
# measurement, with the device each was made on:

# %%
for row in recorded.recorded("decode_base_gpu") + recorded.recorded("decode_base_cpu"):
    print(f"{row['device']} (recorded {row['date']}): {row['value']:.0f} tokens/s, limit {row['limit']:.0f},")
    print(f"    {row['ratio_limit']:.1%} of it; {row['ratio_peer']:.2f} × {row['peer']} in the same process")

# %% [markdown]
# ## Lab
#
# [Lab 1](../labs/01_decoding.ipynb) has ten exercises: you write softmax with temperature, the loop,
# top-k, top-p, the penalties, beam search and contrastive decoding, and find the mistake in a sampler. A cell
# tells at once whether each is right. To warm up, here in this notebook:
#
# 1. (10 min) Find the smallest frequency penalty that ends the loop of greedy search in 1.3, for the prose and
#    for the code. Is it the same one?
# 2. (15 min) In the sampling explorer, find a prompt for which top-k 40 keeps more tokens than top-p 0.8, and
#    one for which it keeps fewer. Predict each from the entropy before you look.
# 3. (15 min) Swap expert and amateur in 1.8. Predict what happens to repetition first, then read two of the
#    texts: is less repetition a success here?
#
# ## Summary
#
# - A decoder is a loop around a distribution; what is *likeliest* (greedy, beam) and what *reads well* (truncated
#   sampling) are different questions.
# - Truncation by mass or by ratio adapts to the model's confidence where truncation by count cannot.
# - Every remedy against repetition also punishes repetition that was right: measure it on your own domain.
#
# **Sources** Fan et al. 2018 (top-k) · Holtzman et al. 2020 (top-p, degeneration) · Meister et al. 2023
# (typical) · Hewitt et al. 2022 (η) · Nguyen et al. 2024 (min-p) · Keskar et al. 2019 (multiplicative penalty) ·
# Welleck et al. 2020 (seq-rep-n) · Li et al. 2016 (distinct-n) · Li et al. 2022 (contrastive decoding) ·
# Wu et al. 2016 (length penalty) · Guo et al. 2017 (calibration)
