"""The exercises of lab 4 about early exit, a module each, named as the exercise is.

drawn            logits with a given favourite or entropy
entropy_exit     leave at the first layer whose distribution is narrow, and run no more
runs             rows of favourites that stay for some layers, and a patience that fits them
patience_exit    leave when the favourite has been confirmed often enough
exit_threshold   the threshold for a budget of layers, from held-out readings
"""
