"""Reports: one self-contained HTML page about runs and studies, and the plot of a history."""

from prunus.report.history_plot import plot_history
from prunus.report.page import write_report

__all__ = ["plot_history", "write_report"]
