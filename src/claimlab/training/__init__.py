"""Training: what is trained (Task), the loop that hands control back (Run), chains of it (Stages)."""

from claimlab.training.run import Run
from claimlab.training.stages import Chain, Stages
from claimlab.training.task import Supervised, Task, Tick

__all__ = ["Chain", "Run", "Stages", "Supervised", "Task", "Tick"]
