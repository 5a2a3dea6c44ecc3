"""The programs of the corpus: real gloo jobs, a file for each family, each with what is true of it.

Nothing here decides what ``diagnose`` should say by what it says today.
"""
