"""The exercises of every lab.

catalogue     all of them, by lab and by name
inputs        how cases are drawn: nothing in them turns on rounding
decoding/     lab 1
"""
