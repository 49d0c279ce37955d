"""Reports: one self-contained page and its pictures."""

from pgraft_fast.report.page import Picture, Section, Table, interval, write_page
from pgraft_fast.report.pipeline_report import write_evaluation_report
from pgraft_fast.report.plots import picture_grid_png
from pgraft_fast.report.run_report import report_seconds, write_run_report

__all__ = [
    "Picture",
    "Section",
    "Table",
    "interval",
    "picture_grid_png",
    "report_seconds",
    "write_evaluation_report",
    "write_page",
    "write_run_report",
]
