"""What a free-threaded build of CPython gets in the place of compiled modules."""
