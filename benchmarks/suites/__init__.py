"""One question in each module: ``QUESTION`` and ``run(context) -> Report``."""
