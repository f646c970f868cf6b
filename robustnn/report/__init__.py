"""Statistics, tables and figures of a robustness report: arrays in, text or Axes out; no torch."""

from __future__ import annotations

from robustnn.files import atomic_write_bytes as atomic_write_bytes
from robustnn.files import atomic_write_text as atomic_write_text
from robustnn.report.blocks import block_is_current as block_is_current
from robustnn.report.blocks import replace_block as replace_block
from robustnn.report.blocks import update_block as update_block
from robustnn.report.certified import certification_against_eps as certification_against_eps
from robustnn.report.certified import certified_action_change as certified_action_change
from robustnn.report.certified import loop_gains as loop_gains
from robustnn.report.environment import environment as environment
from robustnn.report.files import read_csv as read_csv
from robustnn.report.files import write_csv as write_csv
from robustnn.report.frontier import profile_against_eps as profile_against_eps
from robustnn.report.frontier import robustness_frontier as robustness_frontier
from robustnn.report.plots import action_sensitivity as action_sensitivity
from robustnn.report.plots import attack_convergence as attack_convergence
from robustnn.report.plots import lipschitz_bars as lipschitz_bars
from robustnn.report.plots import phase_portrait as phase_portrait
from robustnn.report.plots import return_against_eps as return_against_eps
from robustnn.report.plots import save_figure as save_figure
from robustnn.report.robustness import area_under_profile as area_under_profile
from robustnn.report.robustness import optimality_gap as optimality_gap
from robustnn.report.robustness import performance_profile as performance_profile
from robustnn.report.robustness import probability_of_improvement as probability_of_improvement
from robustnn.report.statistics import Interval as Interval
from robustnn.report.statistics import aggregate as aggregate
from robustnn.report.statistics import bootstrap_interval as bootstrap_interval
from robustnn.report.statistics import iqm as iqm
from robustnn.report.statistics import mean as mean
from robustnn.report.statistics import median as median
from robustnn.report.statistics import paired_difference as paired_difference
from robustnn.report.statistics import worst_decile as worst_decile
from robustnn.report.style import Appearance as Appearance
from robustnn.report.style import appearances as appearances
from robustnn.report.style import style as style
from robustnn.report.tables import Table as Table
from robustnn.report.tables import format_interval as format_interval
from robustnn.report.tables import format_number as format_number
from robustnn.report.tables import model_eps_table as model_eps_table
from robustnn.report.tables import score_arrays as score_arrays
