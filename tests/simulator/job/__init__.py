"""Programs of ranks, what becomes of them, and the truth about it."""
