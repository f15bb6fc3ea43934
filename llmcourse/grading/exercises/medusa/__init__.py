"""The exercises of lab 4 about trees of drafts, a module each, named as the exercise is.

drawn               trees, their tokens and what the target wants along a path
medusa_candidates   tokens, parents, positions and mask of a tree of the heads' guesses
walks               down a tree, the right way and wrong ways
walk_tree           the path of a tree that stands, the token after it, and what the cache keeps
"""
