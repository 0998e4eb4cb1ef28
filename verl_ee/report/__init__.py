"""Tables and plots of what runs and collections wrote; they need files, and neither verl nor torch, ray or vllm."""

from verl_ee.report.comparison import compare
from verl_ee.report.plot import save_plot
from verl_ee.report.rationales import rationales_text
from verl_ee.report.stores import store_text
from verl_ee.report.tables import Report, report

__all__ = ["Report", "compare", "rationales_text", "report", "save_plot", "store_text"]
