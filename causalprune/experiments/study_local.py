"""The executor of studies that runs one trial after the other in this process."""

from __future__ import annotations

from causalprune.errors import DivergedError
from causalprune.experiments.prepared import Prepared
from causalprune.experiments.study_work import StudyWork, prepared_block, study_row
from causalprune.experiments.trial_artefacts import TrialArtefacts

__all__ = ["run_here"]


def run_here(work: StudyWork) -> None:
    """Run what is queued, one trial after the other."""
    ready: dict[int, Prepared | DivergedError] = {}
    done = 0
    while work.limit is None or done < work.limit:
        claimed = work.store.claim(work.worker)
        if claimed is None:
            break
        entry = work.cells[claimed.trial]
        if entry.block not in ready:
            # Not held meanwhile: a process that ends here is not to its account.
            work.store.release(claimed.trial, work.worker)
            ready[entry.block] = prepared_block(work, entry.block)
            continue
        artefacts = TrialArtefacts(work.spec.artefacts)
        row = study_row(work.spec.blocks[entry.block], entry, ready[entry.block], artefacts)
        work.finish(claimed.trial, row, artefacts.content)
        done += 1
