"""The exercises of lab 6, a module each, named as the exercise is.

drawn                       what cases are drawn from: logits, and results of which the errors are known
soften                      a distribution at a temperature, and its entropy
kd_loss, reverse_kl         the two divergences, and what they tell the student's logits
mixed_loss                  the teacher beside the labels
top_k_teacher               a teacher of which the likeliest tokens are stored, the rest as one bucket
projection_loss             hidden states of another width, texts of different lengths
train_step                  a step of training: a head that both read, batches that add up, clipping
calibration                 how far confidence is from accuracy
read_table                  which claims a table of results bears out
"""
