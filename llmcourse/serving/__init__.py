"""Many requests at once: which of them compute what in a step, and where their keys and values lie.

request       what is asked for, and how far it has come
block_pool    memory in blocks, counted by their users
prefix_index  finding blocks that hold the beginning of a text
"""
