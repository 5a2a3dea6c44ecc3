"""A collector's answer in which workers that say the same are one group: version 2.

The answer to ``collect?version=2`` is ``{"version": 2, "groups": [GROUP]}``. A GROUP has, once for
all its workers, what they say alike, in the words of a WORKER of version 1: ``unix``, ``tls``,
``kind``, ``responded``, ``digest``, ``main``, ``mode`` and ``failures``. What differs is a COLUMN:
a list with the value of each worker of the group, or with the only value of all of them. Besides::

    rows      which workers of the host these are, counted from 0, as text ("0-6"): each worker of
              the answer is in one group
    rank      COLUMN
    address   {"begin", "middle", "end"}: the text between, a COLUMN, differs
    health    {NAME: COLUMN} of what ``/healthz`` tells, or null
    summary   null, or ``fr_summary`` as text: {"parts", "places", "times", "ranks"}. Between two
              parts, "_ns": and a time belong: places has the number of the time. times has a COLUMN
              for each of the different times. If ranks is a COLUMN, and not null, the text begins
              with {"rank": and the rank, which parts leave out

A collector from before version 2 answers the question with 400; then it is asked for version 1.
"""
