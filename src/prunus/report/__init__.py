"""Reports: one self-contained HTML page about runs and studies, and plots."""

from prunus.report.history_plot import plot_history
from prunus.report.page import write_report
from prunus.report.sensitivity_plot import plot_sensitivity

__all__ = ["plot_history", "plot_sensitivity", "write_report"]
