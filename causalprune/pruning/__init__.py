"""From scores to a physically smaller network: plans, surgery, and the driver."""

from causalprune.pruning.audits import Audit, audit
from causalprune.pruning.blocks import prune_blocks, remove_vanished
from causalprune.pruning.cascade_steps import CascadeStep, geometric_ratios
from causalprune.pruning.cascades import cascade
from causalprune.pruning.driver import prune
from causalprune.pruning.footprint import Footprint
from causalprune.pruning.masks import apply_masks, holding, load_masks, save_masks
from causalprune.pruning.plan_differences import GroupDifference, PlanDifference
from causalprune.pruning.plans import LayerRow, Plan, PlanRow
from causalprune.pruning.refit import refit
from causalprune.pruning.retraining import SgdRecipe, retrain
from causalprune.pruning.schedules import Iterative, OneShot, Progressive
from causalprune.pruning.selection import plan
from causalprune.pruning.surgery import apply
from causalprune.pruning.trace import Removal, Step, Trace
from causalprune.pruning.weights import prune_n_of_m, prune_weights

__all__ = [
    "Audit",
    "CascadeStep",
    "Footprint",
    "GroupDifference",
    "Iterative",
    "LayerRow",
    "OneShot",
    "Plan",
    "PlanDifference",
    "PlanRow",
    "Progressive",
    "Removal",
    "SgdRecipe",
    "Step",
    "Trace",
    "apply",
    "apply_masks",
    "audit",
    "cascade",
    "geometric_ratios",
    "holding",
    "load_masks",
    "plan",
    "prune",
    "prune_blocks",
    "prune_n_of_m",
    "prune_weights",
    "refit",
    "remove_vanished",
    "retrain",
    "save_masks",
]
