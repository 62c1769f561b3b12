"""What an experiment is to do, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from causalprune.errors import InvalidArgumentError, RecordError

__all__ = ["DEFAULT_METHODS", "DEFAULT_RATIOS", "RunConfig"]

DEFAULT_METHODS = ("path", "l1", "random")
DEFAULT_RATIOS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
_SCHEMA = 1
_OF = ("parameters", "macs", "units")
_SCOPES = ("auto", "global", "layer")
_AT_LEAST = {
    "seed": 0,
    "checkpoints": 1,
    "epochs": 0,
    "retrain_epochs": 0,
    "batch_size": 1,
    "calibration": 2,
    "threads": 1,
    "latency_batch": 1,
    "latency_repeats": 1,
    "train_limit": 1,
    "test_limit": 1,
    "image_size": 1,
}
_MAY_BE_NONE = ("epochs", "retrain_epochs", "train_limit", "test_limit", "image_size")
_LEARNING_RATES = {"adam": (2e-3, 1e-3), "sgd": (0.1, 0.1)}
_AUGMENTATIONS = (None, "crop_flip")
_SINCE_THE_SCHEMA: dict[str, Any] = {
    "optimiser": "adam",
    "augment": None,
    "latency_batches": [],
    "image_size": None,
    "weights": None,
    "check_by_ablation": True,
    "explain": None,
}
"""Fields that records may lack. Defaults are not written, so that records without them match."""


@dataclass(frozen=True)
class RunConfig:
    """An experiment: networks x methods x ratios, each cell one trial.

    Attributes
    ----------
    network : str
        A registered network, or a classifier of torchvision or timm: ``"torchvision:alexnet"``,
        ``"timm:..."`` or the bare name (see
        :func:`~causalprune.experiments.networks.network_spec`).
    data : str
        A registered data set, or a folder with one sub-folder of images a class.
    data_root : str or None
        Where the data set's files are.
    methods : tuple of str
        Scoring methods that rank the units.
    ratios : tuple of float
        Targets in [0, 1): the fraction to remove.
    ratio_of : str
        What a ratio counts: ``"parameters"``, ``"macs"`` or ``"units"``.
    scope : str
        ``"global"`` ranks all units together, ``"layer"`` each layer by itself. ``"auto"`` is
        global for methods whose importances are changes of the outcome, which compare across
        layers, and layer for the others (norms, random): as they were published, and because
        ranking plain norms together empties the layers with the smallest filters first.
    outcome : str
        Outcome whose change the scores measure, with the methods that can; the others take the
        default (``checks.json`` names what each took).
    seed : int
        Everything random follows from it.
    checkpoints : int
        Number of independently trained networks.
    epochs, retrain_epochs : int or None
        Passes over the training images before and after pruning; None for what suits the data.
    optimiser : str
        ``"adam"``, whose step size falls to zero linearly, or ``"sgd"``: momentum 0.9, weight
        decay 1e-4, the warm-up and steps of
        :class:`~causalprune.pruning.SgdRecipe`, stretched over the epochs.
    learning_rate, retrain_learning_rate : float
        Largest step sizes in training and retraining; None: 2e-3 and 1e-3 for ``"adam"``, 0.1
        for ``"sgd"``.
    augment : str or None
        ``"crop_flip"``: random crops and mirror images, in training and in retraining.
    batch_size : int
        Images a training step.
    calibration : int
        Training images set aside for scoring.
    train_limit, test_limit : int or None
        Use only so many images.
    latency_batch, latency_repeats : int
        Images a timed pass, and timed passes.
    latency_batches : tuple of int
        More numbers of images for which a pass is timed, too, after `latency_batch`.
    threads : int
        torch's intra-operator threads. Part of the design: another number changes the order of
        additions and so, in the end, the numbers.
    device : str
        ``"auto"`` (an accelerator where there is one), ``"cpu"`` or ``"cuda"``.
    image_size : int or None
        Height and width in pixels that images are brought to; None for the network's own.
    weights : str or None
        Weights to load instead of training: a file (for one checkpoint), or a folder with
        ``0.pt``, ``1.pt`` and so on.
    check_by_ablation : bool
        Score by exact ablation, too, to compare the methods with; for a large network that takes
        hours.
    explain : bool or None
        Keep the explanatory graphs of (at most ten) classes for the first checkpoint, with an
        example image of each class and its map (:func:`causalprune.scoring.explained`). None:
        where there is the check by ablation, which takes about half as long.

    Raises
    ------
    InvalidArgumentError
        On construction, when a value is out of range.

    Examples
    --------
    >>> config = RunConfig(ratios=(0.0, 0.5), checkpoints=1)
    >>> RunConfig.from_dict(config.to_dict()) == config
    True
    """

    network: str = "lenet5"
    data: str = "digits"
    data_root: str | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    ratios: tuple[float, ...] = DEFAULT_RATIOS
    ratio_of: str = "parameters"
    scope: str = "auto"
    outcome: str = "loss"
    seed: int = 0
    checkpoints: int = 3
    epochs: int | None = None
    retrain_epochs: int | None = None
    optimiser: str = "adam"
    learning_rate: float | None = None
    retrain_learning_rate: float | None = None
    augment: str | None = None
    batch_size: int = 64
    calibration: int = 256
    train_limit: int | None = None
    test_limit: int | None = None
    latency_batch: int = 16
    latency_batches: tuple[int, ...] = ()
    latency_repeats: int = 30
    threads: int = 1
    device: str = "auto"
    image_size: int | None = None
    weights: str | None = None
    check_by_ablation: bool = True
    explain: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in self.ratios))
        object.__setattr__(self, "latency_batches", tuple(self.latency_batches))
        for name, least in _AT_LEAST.items():
            _check_integer(name, getattr(self, name), least, name in _MAY_BE_NONE)
        _check_choice("optimiser", self.optimiser, tuple(_LEARNING_RATES))
        _check_choice("augment", self.augment, _AUGMENTATIONS)
        for name in ("learning_rate", "retrain_learning_rate"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and value > 0 and math.isfinite(value)):
                raise InvalidArgumentError(f"{name}: expected a number above 0, got {value!r}")
        for batch in self.latency_batches:
            _check_integer("latency_batches", batch, 1, False)
        _check_distinct("latency_batches", (self.latency_batch, *self.latency_batches))
        _check_distinct("methods", self.methods)
        _check_distinct("ratios", self.ratios)
        for ratio in self.ratios:
            if not 0 <= ratio < 1:
                raise InvalidArgumentError(f"ratios: expected values in [0, 1), got {ratio:g}")
        _check_choice("ratio_of", self.ratio_of, _OF)
        _check_choice("scope", self.scope, _SCOPES)
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise InvalidArgumentError(
                f"device: expected auto, cpu, cuda or cuda:<number>, got {self.device!r}"
            )
        if not isinstance(self.check_by_ablation, bool):
            raise InvalidArgumentError(
                f"check_by_ablation: expected true or false, got {self.check_by_ablation!r}"
            )
        if self.explain is not None and not isinstance(self.explain, bool):
            raise InvalidArgumentError(
                f"explain: expected true, false or none, got {self.explain!r}"
            )
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise InvalidArgumentError(
                f"weights: expected the path of a file or folder, got {self.weights!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, with the schema's version."""
        values = {
            name: value
            for name, value in self._values().items()
            if name not in _SINCE_THE_SCHEMA or value != _SINCE_THE_SCHEMA[name]
        }
        return {"schema": _SCHEMA, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Rebuild a configuration from ``to_dict``'s result; keys that are no fields are ignored.

        A field that a later release of causalprune added has its default, which is what that
        release did before.

        Raises
        ------
        RecordError
            The values come from another version of the schema, or a field is missing.
        InvalidArgumentError
            A value is out of range.
        """
        if values.get("schema") != _SCHEMA:
            raise RecordError(f"configuration: schema {values.get('schema')!r}, expected {_SCHEMA}")
        names = [entry.name for entry in fields(cls)]
        missing = [n for n in names if n not in values and n not in _SINCE_THE_SCHEMA]
        if missing:
            raise RecordError(f"configuration: fields are missing: {', '.join(missing)}")
        return cls(**{name: values[name] for name in names if name in values})

    @property
    def explains(self) -> bool:
        """Whether explanatory graphs are kept."""
        return self.check_by_ablation if self.explain is None else self.explain

    def learning_rates(self) -> tuple[float, float]:
        """Return the largest step sizes in training and in retraining."""
        first, again = _LEARNING_RATES[self.optimiser]
        return (
            first if self.learning_rate is None else self.learning_rate,
            again if self.retrain_learning_rate is None else self.retrain_learning_rate,
        )

    def differences(self, other: RunConfig) -> list[str]:
        """List the fields in which another configuration differs, as ``name: mine -> other's``."""
        mine, others = self._values(), other._values()
        return [f"{key}: {mine[key]} -> {others[key]}" for key in mine if mine[key] != others[key]]

    def _values(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def _check_integer(name: str, value: object, least: int, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise InvalidArgumentError(f"{name}: expected at least {least}, got {value}")


def _check_distinct(name: str, values: tuple[object, ...]) -> None:
    if not values:
        raise InvalidArgumentError(f"{name}: expected at least one")
    if len(set(values)) < len(values):
        raise InvalidArgumentError(f"{name}: each may appear only once, got {list(values)}")


def _check_choice(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        names = ", ".join("none" if entry is None else entry for entry in known)
        raise InvalidArgumentError(f"{name}: expected one of {names}, got {value!r}")
