"""Runs in MLflow compared: which setting did best, by how much, for which compute; see docs."""

from t2i_ray.compare.comparison import Comparison, compare
from t2i_ray.compare.page import markdown_table
from t2i_ray.compare.publish import log_to_parent, report_sweep

__all__ = ["Comparison", "compare", "log_to_parent", "markdown_table", "report_sweep"]
