"""Slow, and not stuck: which rank the others wait for, how often and for how long.

``arrivals`` says when each rank came to each operation, and ``pace`` how long its steps take.
``chance`` says what equal ranks would do by chance. ``study`` puts them together.
"""
