"""Training: what is trained (Task), the loop that hands control back (Run), chains and rows of it (Stages, Series)."""

from claimlab.training.run import Run
from claimlab.training.series import Series
from claimlab.training.stages import Chain, Stages
from claimlab.training.task import Stepwise, Supervised, Task, Tick

__all__ = ["Chain", "Run", "Series", "Stages", "Stepwise", "Supervised", "Task", "Tick"]
