"""Each module answers one question: ``QUESTION`` and ``run(context) -> Report``."""
