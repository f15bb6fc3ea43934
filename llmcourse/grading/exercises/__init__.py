"""The exercises of every lab.

catalogue                    all of them, by lab and by name
hints                        what more than one exercise says
inputs                       how cases are drawn: nothing in them turns on rounding
first_steps                  that of the front page, in no lab
decoding/                    lab 1
roofline/, kv_cache/         lab 2
flash_attention/, serving/   lab 3
speculative/, medusa/        lab 4
early_exit/, blockwise/
quantization/                lab 5
distillation/                lab 6
"""
