"""Stack snapshots of every Python thread: of one moment under the GIL, or read without it.

With the GIL: ``sys._current_frames()`` gives live frames. A walk over them in Python code loses
the GIL in the middle and sees one thread at several moments; on CPython 3.11 it corrupts memory.
Here one piece of C takes and walks the frames. From the call of ``_current_frames`` to the last
copied frame no bytecode runs, nothing waits and nothing is deallocated. So all stacks are of one
moment. Only threads that share the caller's GIL can be read this way. (From CPython 3.12 on, a
process may run several interpreters, each with a GIL of its own.)

Without the GIL: selfread/. Where that is impossible, kernel.c gives what the kernel knows.

All three fill the same plain C (snapshot.h), and render.c makes text, JSON and digests of it.

``frames`` has CPython's frames as C sees them, ``snapshot`` the class and how it is filled with
the GIL, ``faces`` the functions that other modules call, ``learning`` what the waits of threads
are read with, ``recording`` what samples them for a while.
"""

include "frames.pyx"
include "snapshot.pyx"
include "faces.pyx"
include "learning.pyx"
include "recording.pyx"
