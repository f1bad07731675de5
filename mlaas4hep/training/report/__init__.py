"""The report of a training: one HTML page that needs nothing beside it."""

from mlaas4hep.training.report.collect import report_on_data
from mlaas4hep.training.report.data import InputFile, ReportData
from mlaas4hep.training.report.page import render, write_report

__all__ = ["InputFile", "ReportData", "render", "report_on_data", "write_report"]
