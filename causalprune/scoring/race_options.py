"""What a race decides, and how."""

from __future__ import annotations

from dataclasses import dataclass

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring.estimation import POPULATIONS

__all__ = ["RANKS", "SCOPES", "RaceOptions"]

RANKS = ("importance", "effect")
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class RaceOptions:
    """What the race decides, and how.

    Attributes
    ----------
    ratio : float
        Fraction of the units to be removed, in (0, 1): the decision whose boundary is sought.
    surrogate : str or None
        See :func:`causalprune.scoring.surrogates.surrogate_of`.
    rank : str
        ``"importance"``: by the mean over images of abs(Y_do - Y). ``"effect"``: by the mean of
        Y_do - Y, turned so that a high rank is a unit whose removal makes the outcome worse.
    scope : str
        ``"global"``: one boundary for all units. ``"layer"``: one in every group.
    population : str
        What the reported effects are means of: ``"distribution"`` or ``"images"``. The race is
        always about the images at hand: its decision is that of exact ablation on all of them.
    """

    ratio: float = 0.5
    surrogate: str | None = None
    rank: str = "importance"
    scope: str = "global"
    population: str = "distribution"

    def check(self) -> None:
        """Raise where a value is out of range."""
        ratio = self.ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise InvalidArgumentError(f"ratio: expected a number in (0, 1), got {ratio!r}")
        for what, value, known in (
            ("rank", self.rank, RANKS),
            ("scope", self.scope, SCOPES),
            ("population", self.population, POPULATIONS),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)
