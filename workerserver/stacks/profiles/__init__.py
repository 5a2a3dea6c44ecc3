"""Profiles of sampled stacks: what one process recorded, a whole job, and the forms to view it in.

Shared by the server, which answers ``GET /debug/pprof/profile``, and ``workerserver record``.
"""
