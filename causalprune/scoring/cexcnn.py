"""CexCNN: what deleting a unit costs in accuracy, or in the probability of one class."""

from __future__ import annotations

from torch import Tensor, no_grad

from causalprune.errors import InvalidArgumentError
from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.methods import (
    Job,
    MethodResult,
    UnitScores,
    fixed_outcome,
    register_method,
)
from causalprune.scoring.outcomes import OUTCOMES, Outcome

__all__ = ["cexcnn", "deletion_effects", "probability_of"]


@register_method(
    "cexcnn",
    needs_labels=False,
    interventions=("zero", "mean", "resample"),
    outcomes=("correctness",),
)
def cexcnn(job: Job, *, target_class: int | None = None) -> MethodResult:
    """Rank units by e = accuracy(network) - accuracy(unit deleted), on the images given.

    The images are the held-out split: give images that the network was not trained on, because
    on training images few deletions cost anything. ``importance`` is e, ``effect`` is -e (Y_do - Y
    of correctness, 0 or 1 per image) with its paired interval. Deleting follows the removal
    semantics: the unit is cut where its consumers read it.

    Parameters
    ----------
    job : Job
    target_class : int, optional
        Explain a class instead: Y is the softmax probability of this one class on every image,
        whatever its label; no labels are needed. e is then a fall of that probability.

    Raises
    ------
    InvalidArgumentError
        If an outcome is given (the method has its own), or `target_class` is no class.
    DataError
        If labels are needed and are missing or no class indices.

    Notes
    -----
    Source: Debbi (2021), CexCNN, "Causal explanation of convolutional neural networks".

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> images = torch.randn(20, 4)
    >>> scores = score(model, (images, model(images).argmax(1)), method="cexcnn")
    >>> bool((scores.frame["importance"] == -scores.frame["effect"]).all())
    True
    >>> bool((scores.frame["importance"] >= 0).all())  # nothing to gain: all 20 are right
    True
    """
    effects = deletion_effects(job, "cexcnn", target_class)
    units = {}
    for name, (mean, cost) in effects.items():
        units[name] = UnitScores(
            -mean.mean, mean.mean, mean.standard_error, mean.n, cost, statistics=mean
        )
    return MethodResult(units, outcome=_outcome(target_class))


def deletion_effects(
    job: Job, method: str, target_class: int | None
) -> dict[str, tuple[PairedMean, float]]:
    """Effects Y_do - Y of deleting every unit alone, and the forward-equivalents of each.

    Parameters
    ----------
    job : Job
    method : str
        Named in errors.
    target_class : int or None
        Y is the probability of this class; ``None``: correctness, from the labels.

    Returns
    -------
    dict of str to (PairedMean of [n_units], float)
        By group name.

    Raises
    ------
    InvalidArgumentError, DataError
        As :func:`cexcnn`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.graph import capture
    >>> from causalprune.scoring import OUTCOMES, as_batches
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> images = torch.randn(5, 4)
    >>> batches = as_batches(images, labels=False)
    >>> job = Job(model, capture(model, images), batches, OUTCOMES["loss"])
    >>> mean, _ = deletion_effects(job, "cexcnn", target_class=1)["0"]
    >>> mean.n, mean.mean.shape
    (5, torch.Size([3]))
    """
    job = fixed_outcome(job, method, _outcome(target_class))
    exact = ExactEffects(job)
    means = {group.name: PairedMean(group.n_units) for group in job.graph.groups}
    n_batches = job.batches.n_batches
    total = None if n_batches is None else n_batches * len(means)
    batches = job.batches.labelled() if target_class is None else job.batches
    with no_grad(), job.bar(method, total) as advance:
        for batch in batches:
            exact.observe(batch)
            for group in job.graph.groups:
                means[group.name].update(exact.effects(group.name, range(group.n_units)))
                advance()
    return {name: (mean, exact.interventions.cost(name) * mean.n) for name, mean in means.items()}


def probability_of(target_class: int) -> Outcome:
    """Outcome: softmax probability of one class, whatever the label of the image.

    Parameters
    ----------
    target_class : int

    Raises
    ------
    InvalidArgumentError
        If `target_class` is no class; beyond the network's classes, when it is evaluated.

    Examples
    --------
    >>> import torch
    >>> probability_of(1).function(torch.zeros(1, 2), None).item()
    0.5
    """
    if not isinstance(target_class, int) or isinstance(target_class, bool) or target_class < 0:
        raise InvalidArgumentError(f"target_class: expected a class index, got {target_class!r}")

    def probability(logits: Tensor, targets: Tensor | None) -> Tensor:
        if logits.ndim != 2 or target_class >= logits.shape[1]:
            raise InvalidArgumentError(
                f"target_class: expected a class of logits {list(logits.shape)}, got {target_class}"
            )
        return logits.softmax(1)[:, target_class]

    name = f"probability of class {target_class}"
    return Outcome(name, probability, higher_is_better=True, needs_labels=False)


def _outcome(target_class: int | None) -> Outcome:
    return OUTCOMES["correctness"] if target_class is None else probability_of(target_class)
