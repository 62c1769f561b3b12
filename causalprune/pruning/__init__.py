"""From scores to a physically smaller network: plans, surgery, and the driver."""

from causalprune.pruning.driver import prune
from causalprune.pruning.footprint import Footprint
from causalprune.pruning.plans import Plan, PlanRow
from causalprune.pruning.selection import plan
from causalprune.pruning.surgery import apply

__all__ = ["Footprint", "Plan", "PlanRow", "apply", "plan", "prune"]
