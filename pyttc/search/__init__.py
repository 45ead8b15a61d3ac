"""Search strategies over paths, one a file, and what runs them."""

from .beam import DVTS, Beam
from .best_of_n import BestOfN
from .budget import Budget
from .curve import Point, curve
from .greedy import Greedy
from .independent import Independent
from .majority import AdaptiveConsistency, EarlyStopping, Majority
from .particle_filter import ParticleFilter
from .rebase import Rebase
from .revision import BudgetForcing, Revision
from .run import Run, Strategy, Tool
from .sample_n import SampleN
from .sandbox import Sandbox
from .scores import mean_logprob, self_certainty
from .solve import Result, solve, stream
from .tree import SearchTree

__all__ = [
    "AdaptiveConsistency",
    "Beam",
    "BestOfN",
    "Budget",
    "BudgetForcing",
    "DVTS",
    "EarlyStopping",
    "Greedy",
    "Independent",
    "Majority",
    "ParticleFilter",
    "Point",
    "Rebase",
    "Result",
    "Revision",
    "Run",
    "SampleN",
    "Sandbox",
    "SearchTree",
    "Strategy",
    "Tool",
    "curve",
    "mean_logprob",
    "self_certainty",
    "solve",
    "stream",
]
