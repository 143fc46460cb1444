"""claimlab: papers about neural networks as experiments whose claims are judged by the data."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is loaded. By default its idle threads spin: on cores that are shared with another process the same
# training was measured to take up to 60 times the processor time. A value that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
