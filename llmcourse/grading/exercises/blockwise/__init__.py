"""The exercises of lab 4 about text in blocks, a module each, named as the exercise is.

drawn            a model of gaps, whose places are as sure as a case wants
block_decoding   a block of masks, filled in a number of passes, the surest guesses first
"""
