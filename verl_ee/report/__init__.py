"""Tables and a plot of what runs wrote. Reads files only: neither verl nor torch, ray or vllm."""

from verl_ee.report.plot import save_plot
from verl_ee.report.tables import Report, compare, report

__all__ = ["Report", "compare", "report", "save_plot"]
