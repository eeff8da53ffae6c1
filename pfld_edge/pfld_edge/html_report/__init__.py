"""The report on a verification: one HTML file, with everything in it."""

from pfld_edge.html_report.page import ReportContext, report_page

__all__ = ["ReportContext", "report_page"]
