"""The exercises of lab 3 about attention, a module each, named as the exercise is.

traffic                                     bytes that attention moves, with tiles and without
online_softmax, tiled_attention             scores that come in blocks; scores that are never all there
causal_tile                                 what a tile of queries may see of a tile of keys
triton_softmax                              a kernel of the student's own
"""
