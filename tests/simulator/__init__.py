"""A simulator of distributed jobs, to judge the judge.

``job``: random programs of ranks, run in simulated time; it knows who hangs and why. ``told``: the
answers that the workers of such a job would give. ``judged``: the verdict's properties over many
jobs. Nothing here is shared with ``workerserver.cluster``; only ``adapter`` knows its data classes.

``python -m tests.simulator`` is the long form, and prints or shrinks one job by its seed.
"""
