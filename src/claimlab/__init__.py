"""claimlab: papers about neural networks as experiments whose claims are judged by the data."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is loaded. One thread a process, for studies run side by side: two threads in each of three
# processes on two cores were measured to take four times as long. `claimlab run`, which runs alone, takes all cores.
THREADS_CHOSEN = "OMP_NUM_THREADS" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a thread that waits lets go of its core after some microseconds
