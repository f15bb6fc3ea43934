"""Many requests at once: which of them compute what in a step, and where their keys and values lie.

request       what is asked for, and how far it has come
block_pool    memory in blocks, counted by their users
prefix_index  finding blocks that hold the beginning of a text
schedule      what one step computes: ranges of tokens
policies      traditional batching, continuous batching, chunked prefill
urgency       priorities that age
batch         slots and block tables: admission, growth, preemption
scheduler     schedule → run → postprocess
runner        what the scheduler asks of a model
engine        the loop around scheduler and runner
clock         the same scheduler on a virtual clock, with
step_time     a roofline's seconds for each step
lecture_grid  the lecture's four slots and eight steps
workload      requests as they might come
metrics       TTFT, TPOT, ITL, throughput, goodput
"""
