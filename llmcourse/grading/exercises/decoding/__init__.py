"""The exercises of lab 1, a module each, named as the exercise is.

softmax, greedy_loop                                       warm-up: one distribution, one loop
top_k, top_p                                               truncation
repetition_penalty, presence_frequency, no_repeat_ngram    penalties on repetition
contrastive, beam_search                                   two models; many texts at once
find_the_bug                                               a sampler to repair
"""
