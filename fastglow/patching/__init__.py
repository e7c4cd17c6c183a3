"""Other people's models on fastglow's kernels: `accelerate(model)` swaps known modules in place."""

from .accelerating import accelerate
from .catalogue import OPS
from .report import Entry, Report
from .swapping import restore

__all__ = ["OPS", "Entry", "Report", "accelerate", "restore"]
