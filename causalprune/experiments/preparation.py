"""What an experiment needs before its first trial: trained networks, scores, their check."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.checks import compare_scores
from causalprune.experiments.config import RunConfig
from causalprune.experiments.datasets import DataSplits
from causalprune.experiments.design import derive_seed
from causalprune.experiments.networks import build_network, network_spec
from causalprune.experiments.outputs import CONFIG_FILE, checkpoint_file, score_file
from causalprune.experiments.progress import Stages, stage
from causalprune.experiments.records import read_json, write_json
from causalprune.experiments.training import train
from causalprune.experiments.weights import load_weights, save_weights, sha256_of
from causalprune.scoring import Scores, explained, resolve_method, score
from causalprune.scoring.outcomes import DEFAULT_OUTCOME

__all__ = [
    "REFERENCE_METHOD",
    "check_network",
    "check_scores",
    "outcomes_used",
    "score_networks",
    "train_networks",
    "weight_digests",
    "weight_files",
]

REFERENCE_METHOD = "ablation"
_CHECKS_SCHEMA = 1


def weight_files(weights: str | os.PathLike[str] | None, checkpoints: int) -> dict[int, Path]:
    """Find the files that stand in for training, by checkpoint number."""
    if weights is None:
        return {}
    path = Path(weights)
    if path.is_dir():
        return {number: path / f"{number}.pt" for number in range(checkpoints)}
    if checkpoints != 1:
        raise InvalidArgumentError(
            f"weights: one file is one checkpoint, but {checkpoints} are asked for; pass "
            "checkpoints=1 (--checkpoints 1) or a folder with 0.pt, 1.pt, ..."
        )
    return {0: path}


def weight_digests(given: Mapping[int, Path]) -> dict[str, str] | None:
    """Return the SHA-256 digest of each file, by checkpoint number; None where there are none."""
    return {str(number): sha256_of(file) for number, file in given.items()} or None


def check_network(config: RunConfig, splits: DataSplits, given: Mapping[int, Path]) -> None:
    """Refuse images and weights that do not fit the network, before anything is trained.

    Parameters
    ----------
    config : RunConfig
    splits : DataSplits
        Of the network's images.
    given : mapping of int to Path
        Weights instead of training, by checkpoint.

    Raises
    ------
    InvalidArgumentError
        The network does not take images of ``config.image_size``.
    DataError
        Weights are missing, broken, or those of another network.
    """
    if config.image_size is None and not given:
        return
    spec = network_spec(config.network)
    model = build_network(config.network, len(splits.classes), seed=config.seed).eval()
    try:
        with torch.no_grad():
            model(splits.test[0][:1])
    except Exception as error:  # a network refuses a size in words and types of its own
        height, width = splits.test[0].shape[-2:]
        raise InvalidArgumentError(
            f"image_size: network {spec.name!r} does not take images of {height} x {width} "
            f"(its own: {spec.input_shape[1]} x {spec.input_shape[2]}): {error}"
        ) from error
    for number, file in given.items():
        try:
            load_weights(model, file, left_out=spec.left_out)
        except DataError as error:
            raise DataError(f"network {spec.name!r}, checkpoint {number}: {error}") from error


def train_networks(
    config: RunConfig,
    folder: Path,
    splits: DataSplits,
    device: torch.device,
    given: Mapping[int, Path],
    progress: bool | Stages,
) -> list[nn.Module]:
    """Load the networks that are on disk or given, train the others, and save them."""
    networks: list[nn.Module] = []
    epochs = config.epochs or 0
    images = splits.train[0].to(device), splits.train[1].to(device)
    title = f"training {config.network} on {splits.name}, {config.checkpoints} x {epochs} epochs"
    with stage(title, config.checkpoints * max(epochs, 1), progress=progress) as advance:
        for number in range(config.checkpoints):
            file = checkpoint_file(folder, number)
            seed = derive_seed(config.seed, "checkpoint", number)
            model = build_network(config.network, len(splits.classes), seed=seed)
            if file.is_file():
                load_weights(model, file)
            elif number in given:
                load_weights(model, given[number], left_out=network_spec(config.network).left_out)
                save_weights(model, file)
            else:
                _refuse_if_weights_were_given(folder, number)
                train(
                    model.to(device),
                    images,
                    epochs=epochs,
                    learning_rate=config.learning_rates()[0],
                    optimiser=config.optimiser,
                    augment=config.augment,
                    batch_size=config.batch_size,
                    seed=seed,
                    on_epoch=_reporter(advance, number),
                )
                save_weights(model, file)
            networks.append(model.cpu().eval())
    return networks


def _reporter(advance: Callable[[str], None], number: int) -> Callable[[int, float], None]:
    return lambda epoch, loss: advance(f"network {number}, loss {loss:.3f}")


def _refuse_if_weights_were_given(folder: Path, number: int) -> None:
    recorded = read_json(folder / CONFIG_FILE).get("weights_sha256")
    if recorded:
        raise InvalidArgumentError(
            f"weights: the run was started with weights and checkpoint {number} is not on disk; "
            "pass them again (--weights)"
        )


def score_networks(
    config: RunConfig,
    folder: Path,
    splits: DataSplits,
    networks: list[nn.Module],
    progress: bool | Stages,
) -> tuple[dict[tuple[int, str], Scores], dict[tuple[int, str], str]]:
    """Score every network by every method and (unless told not to) by the reference.

    Beside the scores, it is noted what went wrong. The first network's first scores hold
    explanatory graphs where the configuration asks for them.
    """
    scores: dict[tuple[int, str], Scores] = {}
    problems: dict[tuple[int, str], str] = {}
    reference = (REFERENCE_METHOD,) if config.check_by_ablation else ()
    methods = list(dict.fromkeys([*config.methods, *reference]))
    title = f"scoring units by {', '.join(methods)}"
    explained_yet = False
    with stage(title, len(networks) * len(methods), progress=progress) as advance:
        for number, model in enumerate(networks):
            for method in methods:
                file = score_file(folder, number, method)
                advance(f"network {number}, {method}")
                if file.is_file():
                    scores[number, method] = Scores.load(file)
                    explained_yet |= "graph layers" in scores[number, method].tables
                    continue
                try:
                    result = score(
                        model,
                        splits.calibration,
                        method=method,
                        outcome=_outcome_for(method, config.outcome),
                        seed=derive_seed(config.seed, "scores", number, method),
                    )
                except Exception as error:  # recorded with every trial that needs these scores
                    problems[number, method] = f"{type(error).__name__}: {error}"
                    continue
                if number == 0 and config.explains and not explained_yet:
                    result, explained_yet = _with_explanations(result, model, splits), True
                result.save(file)
                scores[number, method] = result
    return scores, problems


def _with_explanations(scores: Scores, model: nn.Module, splits: DataSplits) -> Scores:
    """Add explanatory graphs, or a note why there are none: they are no part of any trial."""
    try:
        return explained(
            scores,
            model,
            splits.calibration,
            mean=splits.mean,
            std=splits.std,
            names=splits.classes,
        )
    except Exception as error:
        note = f"explanatory graphs could not be made ({type(error).__name__}: {error})"
        return replace(scores, notes=(*scores.notes, note))


def _outcome_for(method: str, outcome: str) -> str:
    """Return `outcome` where the method measures it, else the default.

    Norms and the like measure none, and gradients of one run cannot compare it with another; what
    was used is in the scores and in ``checks.json`` (:func:`outcomes_used`).
    """
    return outcome if resolve_method(method).takes_outcome(outcome) else DEFAULT_OUTCOME


def outcomes_used(scores: Mapping[tuple[int, str], Scores]) -> dict[str, str]:
    """Return what each method's scores are about, which need not be what was asked for.

    Parameters
    ----------
    scores : Mapping of (int, str) to Scores
        By checkpoint and method.

    Returns
    -------
    dict of str to str
        Method to the name of an outcome; empty for a method that measures none.
    """
    return {method: found.outcome for (_, method), found in scores.items()}


def check_scores(
    config: RunConfig,
    folder: Path,
    scores: Mapping[tuple[int, str], Scores],
    problems: Mapping[tuple[int, str], str],
) -> dict[str, Any]:
    """Compare every method with exact ablation, and write the result to ``checks.json``."""
    comparisons: list[dict[str, Any]] = []
    for number in range(config.checkpoints):
        reference = scores.get((number, REFERENCE_METHOD))
        for method in config.methods:
            own = scores.get((number, method))
            if method == REFERENCE_METHOD or own is None or reference is None:
                continue
            comparisons += compare_scores(
                own.frame, reference.frame, checkpoint=number, method=method
            )
    checks = {
        "schema": _CHECKS_SCHEMA,
        "reference": REFERENCE_METHOD,
        "outcome": config.outcome,
        "outcomes": outcomes_used(scores),
        "comparisons": comparisons,
        "problems": [
            {"checkpoint": number, "method": method, "error": error}
            for (number, method), error in problems.items()
        ],
    }
    write_json(folder / "checks.json", checks)
    return checks
