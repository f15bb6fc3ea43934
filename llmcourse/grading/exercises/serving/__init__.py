"""The exercises of lab 3 about serving, a module each, named as the exercise is.

block_pool            blocks of memory, counted by their users
continuous_batching   who runs in which slot, step by step
find_the_bug          attention over the blocks of a table, to repair
"""
