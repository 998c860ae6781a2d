"""Reports: one self-contained HTML page about runs and studies, with its figures."""

from prunus.report.page import write_report

__all__ = ["write_report"]
