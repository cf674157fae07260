"""Plans the fine-tuning of vision models on small GPUs: what fits, and what it costs.

The functions below are the Python interface. ``import planner`` imports no torch.
"""

from planner.api import load_plan, load_trained, measure, predict, recommend, train

__all__ = ["load_plan", "load_trained", "measure", "predict", "recommend", "train"]
