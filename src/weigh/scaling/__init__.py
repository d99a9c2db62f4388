"""Scaling laws: what loss to expect of so many parameters and tokens, and how to spend a budget on them.

Published constants with their units, the ranges they were fitted on and their uncertainty; no law is corrected here,
and every answer outside of a law's range says so. `weigh.scaling.report` answers, `weigh.scaling.picture` draws.
"""

from weigh.scaling.laws import LAWS, Allocation, Kaplan, Law, Optimum, Parametric, law
from weigh.scaling.report import Question, ScalingReport, ask

__all__ = ["LAWS", "Allocation", "Kaplan", "Law", "Optimum", "Parametric", "Question", "ScalingReport", "ask", "law"]
