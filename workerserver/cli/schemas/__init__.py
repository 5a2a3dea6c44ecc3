"""The JSON Schemas of what --json prints: one for each command, and what several of them use."""
