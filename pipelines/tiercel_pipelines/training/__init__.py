"""Training: a recipe and its data set → a run, a directory with everything that an export needs."""

from .run import TrainedRun
from .train import train_recipe

__all__ = ["TrainedRun", "train_recipe"]
