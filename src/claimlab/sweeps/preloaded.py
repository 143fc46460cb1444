"""What a run of any study needs, loaded once by the process that all runs of a sweep are forked from.

Libraries that load others at the first step, verdict or figure (measured: 5 s of a run) are named here as well. Importing them
starts no thread, which a fork would lose.
"""

import pandas  # noqa: F401
import plotly.graph_objects  # noqa: F401
import plotly.io  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.stats  # noqa: F401
import torch._dynamo  # noqa: F401 - torch.func asks for it at its first use

from claimlab import figures, live  # noqa: F401
from claimlab.sweeps import book  # noqa: F401
