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
# # Start here
#
# This is a course on deploying large language models (大模型部署) that you run: six chapters in which you predict
# what a model will do, let it do it on your machine, and compare; and six labs in which you write the essential
# parts yourself and are told at once whether they are right. Nothing is downloaded, and no GPU is needed.
#
# This page shows what your machine can do, where the chapters lead and how long they take, how the labs work, and
# three ways through the course: a lecture, six weeks, or on your own.
#
# **To run a page** click into a cell and press Shift+Enter, cell after cell; or all of it with *Run → Run All
# Cells*. What you see below the cells is what one such run gave; yours takes its place. `git restore notebooks`
# brings the original back.

# %%
import torch

from llmcourse import doctor, hardware, timing
from llmcourse.figures import course_map, findings_table, machines_plot, recorded, tours
from llmcourse.grading.exercises import catalogue, first_steps
from llmcourse.grading.selfcheck import SelfCheck

# %% [markdown]
# ## What this machine can do
#
# The same that `python -m llmcourse doctor` tells in a terminal. ✓ is here, · is worth knowing and not in the way,
# ✗ is missing; the last column says what to do about it.

# %%
report = doctor.examine()
verdict = report.verdict if report.ok else "Something is missing: see the lines with ✗."
findings_table.findings_table(report.findings, verdict, short=("packages", "models"))

# %% [markdown]
# And as a picture: two numbers tell most of what a machine can do for a language model, the bytes that its memory
# brings in a second and the operations that it does on them (a *roofline*, chapter 2). Writing a token needs two
# operations for every weight, which in 16 bits takes two bytes: 1 FLOP per byte, and the memory is the limit. Reading
# a prompt uses each weight for many tokens, and arithmetic is. The cell measures this machine in a few seconds and sets it beside the GPU on which the course's
# recorded figures were made.

# %%
device = hardware.default_device()
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
size = 8192 if device.type == "cuda" else 1024
left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
time_s = timing.measure(lambda: left @ right, device=device, warmup=2, repeats=5).median_s
bytes_per_s = hardware.copy_bandwidth(device, 2**28) * 1e9  # 256 MiB: more than most caches hold
source = f"measured, {hardware.dtype_name(dtype)}"
here = machines_plot.Roof("this machine", bytes_per_s, 2 * size**3 / time_s, source)
gpu = machines_plot.recorded_roof("NVIDIA H200", recorded.latest())
works = {"writing one text": 1, "writing 64 at once": 64, "reading a prompt": 1024}
title = f"This machine ({hardware.this_machine(device).name}) and a GPU"
machines_plot.plot_machines([here, gpu] if gpu else [here], works, title)

# %%
if gpu:
    for work, factor in machines_plot.ratios(here, gpu, works).items():
        print(f"{work:20} up to {factor:8,.0f} times as much on the recorded {gpu.name}")
print("`python -m llmcourse doctor --measure` measures every format, which takes about a minute.")

# %% [markdown]
# ## The map of the course
#
# Chapter 1 turns what a model computes into text; chapter 2 says what that costs, and gives the roofline that all
# later chapters are held against. Three answers follow, in any order: attention and batching that waste nothing
# (3), several tokens for one pass (4), fewer bits (5). Chapter 6 makes small models good with the help of large
# ones, and puts everything together. Click a box, or a name in the table.

# %%
chapters = course_map.read_course()
labs = catalogue.labs()
lab_minutes = {stem: sum(exercise.minutes for exercise in lab) for stem, lab in labs.items()}
course_map.course_map(chapters, lab_minutes)

# %% [markdown]
# Minutes are those that the chapters name for reading and playing, and the sum of what the exercises of a lab are
# expected to take. Each chapter's cells run in about three minutes on two cores.

# %%
points = {stem: sum(exercise.points for exercise in lab) for stem, lab in labs.items()}
tours.minutes_table(chapters, labs, points)

# %% [markdown]
# ## How labs and grading work
#
# A lab asks for functions: you replace `raise NotImplementedError(…)` by your answer and run the cell below it,
# `check(…)`. Here is one to see it at work, which gives no points: *the most tokens a second that a memory allows*,
# when every token reads every weight once. The first answer is wrong. Look at what the check says: what it got,
# what was expected, and a hint, which says more each time.

# %%
check = SelfCheck(find=first_steps.find)  # labs import one that knows all of theirs


def speed_limit(parameters, bytes_each, gb_per_s):
    return gb_per_s * 1e9 / parameters


verdict = check("00.speed_limit", speed_limit)

# %% [markdown]
# A weight is more than one byte. Mended:


# %%
def speed_limit(parameters, bytes_each, gb_per_s):
    return gb_per_s * 1e9 / (parameters * bytes_each)


verdict = check("00.speed_limit", speed_limit)

# %% [markdown]
# 1. `make lab LAB=01_decoding` opens **your own copy** of a lab, `my_labs/01_decoding.ipynb`. It is made once and
#    never written over. (Without make: copy `labs/01_decoding.ipynb` into a folder `my_labs`.)
# 2. **Write and check**, as often as you like. Run All never stops at what is not written yet; the last cell of a lab
#    shows your points so far.
# 3. `python -m llmcourse grade my_labs/01_decoding.ipynb --out my_grades` says **what a grader would say**: the same
#    questions with other inputs, each answer in a process of its own. It needs Linux; `check` runs everywhere.
# 4. Each lab has 100 points. Answers that only know the inputs of `check` earn nothing, since the grader draws others.
#
# Instructors grade a folder or an export of Moodle or nbgrader with `python -m llmcourse grade submitted/ --out
# grades`, correct by hand with `gradebook adjust`, and find the solutions in `solutions/`.

# %% [markdown]
# ## Tour 1: a lecture of 90 minutes
#
# For an audience that has heard of transformers, with one laptop and a projector. Run the chapters beforehand, then
# show these places; *play* means the widget there. Ask for the prediction before each cell that measures.
#
# | minutes | show | do |
# |---|---|---|
# | 10 | [1.1](01_decoding.ipynb#1.1-The-autoregressive-loop), [1.2](01_decoding.ipynb#1.2-From-logits-to-a-choice) | the loop in nine lines; what does it expect in the pot? Let the audience bet first |
# | 15 | [1.5](01_decoding.ipynb#1.5-Random-sampling) | play `SamplingExplorer`: temperature 0.5, 1, 2; then top-k 40 against top-p 0.9 on a sharp and on a flat distribution |
# | 15 | [2.2](02_kv_cache_and_roofline.ipynb#2.2-Two-numbers-of-a-machine,-two-of-an-operation), [2.4](02_kv_cache_and_roofline.ipynb#2.4-On-the-roofline) | two numbers of a machine; play `RooflineExplorer`: batch from 1 to 256, and see the points climb |
# | 10 | [2.6](02_kv_cache_and_roofline.ipynb#2.6-Will-it-fit?) | play `MemoryCalculator`: which model, how many rows, on whose GPU? |
# | 15 | [3.3](03_flash_attention_and_batching.ipynb#3.3-Tiles:-the-scores-never-leave-the-chip), [3.12](03_flash_attention_and_batching.ipynb#3.12-Policies-on-one-timeline) | play `TilePlayer` step by step; then `BatchingTimeline`: traditional, continuous, chunked |
# | 10 | [4.5](04_speculative_medusa_early_exit.ipynb#4.5-A-text-in-three-colours) | play `TracePlayer`: draft, verdict, correction; code against verse |
# | 10 | [5.2](05_quantization.ipynb#5.2-What-shares-a-scale,-and-where-its-range-ends) | play `QuantizerExplorer`: 8, 4, 3, 2 bits, and what clipping saves |
# | 5 | [6.12](06_distillation.ipynb#6.12-Everything-at-once) | everything on one model: each step beside its roofline; questions |
#
# `make slides` writes each chapter as slides into `build/slides`, `make handouts` as pages and PDF into
# `build/handouts`.

# %% [markdown]
# ## Tour 2: a course of six weeks
#
# A chapter a week: one lecture from its slides (`build/slides`, made by `make slides`), one session at the machines for its lab. Students read the chapter
# between the two and hand the lab in a week later. The hours are computed from the chapters and labs as they are.

# %%
tours.six_weeks(chapters, lab_minutes)

# %% [markdown]
# In class, show the widget of the week and let the students predict: week 1
# [sampling](01_decoding.ipynb#1.5-Random-sampling), week 2
# [the roofline](02_kv_cache_and_roofline.ipynb#2.4-On-the-roofline), week 3
# [policies on one timeline](03_flash_attention_and_batching.ipynb#3.12-Policies-on-one-timeline), week 4
# [a text in three colours](04_speculative_medusa_early_exit.ipynb#4.5-A-text-in-three-colours) and
# [trees](04_speculative_medusa_early_exit.ipynb#4.13-Candidates-as-a-tree), week 5
# [outliers](05_quantization.ipynb#5.8-Outliers), week 6
# [temperature](06_distillation.ipynb#6.2-Temperature,-and-where-$T^2$-comes-from). With fewer weeks, leave out
# along the map: chapters 3, 4 and 5 do not need one another, 6 needs 4 and 5.

# %% [markdown]
# ## Tour 3: on your own
#
# - **In order**, a part at a time. Write your guess into `MY_GUESS` before you run the cell that measures: what
#   you were wrong about is what you learn.
# - **An evening**: [chapter 1](01_decoding.ipynb) up to 1.5, then play with its explorer. **A weekend**: chapters 1 and
#   2 with the first exercises of their labs.
# - **In a hurry for one subject**: [chapter 2](02_kv_cache_and_roofline.ipynb) from 2.2 to 2.4, then any of 3, 4, 5.
# - **After each chapter** its lab: at least the exercises with one to three stars. The warm-ups at the end of a
#   chapter need no lab.
# - **Stuck?** A wrong answer has three hints or more. After that, `solutions/` has one; close it before you write.
#
# Begin with [chapter 1 · Decoding](01_decoding.ipynb).
