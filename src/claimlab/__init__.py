"""claimlab: papers about neural networks as experiments whose claims are judged by the data."""

__version__ = "0.1.0"
