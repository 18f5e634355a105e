"""A report: recorded runs as one HTML file that needs no script, no network and no other file.

It says what was recorded, what a guard saw and asked for, and what other rules would have said. It never says what
acting would have gained.
"""

from lbw_sim.report.build import Report, ReportOptions, build_report, write_report
from lbw_sim.report.findings import RunFindings, showable

__all__ = ["Report", "ReportOptions", "RunFindings", "build_report", "showable", "write_report"]
