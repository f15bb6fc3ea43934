"""The exercises of lab 4 about early exit, a module each, named as the exercise is.

drawn            logits with a given favourite or entropy
layers           what each exit says, of layers of which one is the first that is sure
entropy_exit     leave at the first layer whose distribution is narrow, and run no more
runs             rows of favourites that stay for some layers, and a patience that fits them
patience_exit    leave when the favourite has been confirmed often enough
readings         held-out readings, thresholds and a budget
choices          a threshold chosen from them, rightly and wrongly
exit_threshold   the threshold for a budget of layers, from held-out readings
"""
