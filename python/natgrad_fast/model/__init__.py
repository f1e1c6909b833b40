"""The net, and the batch that its objective is a mean over."""

from .batch import Batch, value, value_and_grad
from .mlp import MLP

__all__ = ["MLP", "Batch", "value", "value_and_grad"]
