"""How we live in somebody's process."""

import sys

#: This CPython was built to run without a GIL. It switches its GIL on, for the whole process, when
#: it loads a compiled module that does not say it can do without one, and none of ours does.
FREE_THREADED = "free-threading" in sys.version
