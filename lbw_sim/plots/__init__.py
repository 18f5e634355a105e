"""Figures. What is drawn is decided in `…_info` functions, as data; `draw_…` functions only draw on an axes.

No pyplot and no global state, so figures can be made in servers and threads; nothing is ever shown on a screen.
"""

from lbw_sim.plots.canvas import PHONE_WIDTH, Picture, check_name, save
from lbw_sim.plots.comparison import comparison_figure
from lbw_sim.plots.detection import detection_figure
from lbw_sim.plots.inline import colour_variables, inline_svg
from lbw_sim.plots.moment import moment_figure, moment_info
from lbw_sim.plots.multiples import stamp_figure, stamp_info
from lbw_sim.plots.outcome import outcome_figure
from lbw_sim.plots.run import GivenUp, plot_trace, run_figure, stretches_given_up

__all__ = [
    "PHONE_WIDTH",
    "GivenUp",
    "Picture",
    "check_name",
    "colour_variables",
    "comparison_figure",
    "detection_figure",
    "inline_svg",
    "moment_figure",
    "moment_info",
    "outcome_figure",
    "plot_trace",
    "run_figure",
    "save",
    "stamp_figure",
    "stamp_info",
    "stretches_given_up",
]
