"""The exercises of lab 2 about the cache, a module each, named as the exercise is.

write_cache, visible               slots: where a token's key and value go, and who may look at them
cached_attention, cached_loop      one step of attention; the loop that reads every token once
rollback                           a draft of which some was accepted
find_the_bug                       a decoding step to repair
"""
