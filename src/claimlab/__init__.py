"""claimlab: papers about neural networks as experiments whose claims are judged by the data."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is loaded. One thread a process: nets of this size hardly gain from a second (67 s against 64 s for
# the quantum well), studies run side by side instead, and numbers do not depend on how many cores a machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")
