"""How much a network's outcome depends on each of its units: methods, outcomes, Scores."""

from causalprune.scoring import (  # noqa: F401  (register)
    ablation,
    banzhaf,
    blame,
    bn_scale,
    cexcnn,
    chance,
    conductance,
    cswap,
    datafree,
    edge_patching,
    ft,
    irreplaceable,
    mint,
    norms,
    path,
    pfp,
    responsibility,
    sipp,
    snip,
    taylor,
    thinet,
    variance,
    wt,
)
from causalprune.scoring.block_masks import mint_masks, random_masks
from causalprune.scoring.data import Batch, Batches, as_batches
from causalprune.scoring.driver import score
from causalprune.scoring.explanatory import explain
from causalprune.scoring.explanatory_checks import GraphCheck
from causalprune.scoring.explanatory_contributions import contribution_map
from causalprune.scoring.explanatory_graph import ExplanatoryGraph
from causalprune.scoring.explanatory_maps import attribution_map, stability
from causalprune.scoring.explanatory_pictures import explained
from causalprune.scoring.mask_tables import MaskTable, mask_table
from causalprune.scoring.methods import (
    METHODS,
    Job,
    Method,
    MethodResult,
    UnitScores,
    register_method,
    resolve_method,
)
from causalprune.scoring.outcomes import OUTCOMES, Outcome, register_outcome, resolve_outcome
from causalprune.scoring.scores import Scores, fingerprint
from causalprune.scoring.sharding import score_sharded
from causalprune.scoring.unit_tables import unit_table

__all__ = [
    "METHODS",
    "OUTCOMES",
    "Batch",
    "Batches",
    "ExplanatoryGraph",
    "GraphCheck",
    "Job",
    "MaskTable",
    "Method",
    "MethodResult",
    "Outcome",
    "Scores",
    "UnitScores",
    "as_batches",
    "attribution_map",
    "contribution_map",
    "explain",
    "explained",
    "fingerprint",
    "mask_table",
    "mint_masks",
    "random_masks",
    "register_method",
    "register_outcome",
    "resolve_method",
    "resolve_outcome",
    "score",
    "score_sharded",
    "stability",
    "unit_table",
]
