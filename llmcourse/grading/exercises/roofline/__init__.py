"""The exercises of lab 2 about cost and speed, a module each, named as the exercise is.

linear_costs, layer_flops          counting: FLOPs and bytes of a matrix, FLOPs of a layer
ridge, turning_batch               the roofline: what is the limit, and from which batch on
largest_batch                      memory: what fits
predict_tokens, runs               tokens a second, against runs that were measured
"""
