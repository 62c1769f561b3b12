"""The search for contingency sets against every set there is, for several images at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import networks
import pytest
import torch
from torch import Tensor, nn

from causalprune.graph import capture, removed
from causalprune.scoring import score
from causalprune.scoring.contingency import Search, Units, grow_sets, try_every_set

Flips = Callable[[Units], bool]


def _smallest(n_units: int, unit: int, flips: Flips) -> list[Units]:
    """All smallest contingency sets of a unit, in the order in which the sets with it come."""
    others = [other for other in range(n_units) if other != unit]
    for size in range(n_units):
        found = [
            w
            for w in itertools.combinations(others, size)
            if not (w and flips(w)) and flips(tuple(sorted((*w, unit))))
        ]
        if found:
            return sorted(found, key=lambda w: tuple(sorted((*w, unit))))
    return []


def test_every_set_is_tried_on_every_image() -> None:
    kinds = set()
    for _ in range(12):
        n_units, n_images = int(torch.randint(1, 8, ())), int(torch.randint(1, 80, ()))
        depth = int(torch.randint(1, n_units + 1, ()))
        every = [
            w for s in range(1, n_units + 1) for w in itertools.combinations(range(n_units), s)
        ]
        values = torch.randn(len(every), n_images).double() + float(torch.rand(())) * 2
        table = dict(zip(every, values, strict=True))

        def slack(masks: Tensor, table: dict[Units, Tensor] = table) -> Tensor:
            return torch.stack([table[tuple(m.nonzero().flatten().tolist())] for m in masks])

        results = try_every_set(n_units, n_images, slack, Search(depth - 1))
        assert len(results) == n_images
        for image, tried in enumerate(results):
            assert tried.found.depth == depth
            for unit in range(n_units):
                sets = _smallest(n_units, unit, lambda w, i=image, t=table: bool(t[w][i] < 0))
                witness, n = tried.found.witness[unit], tried.found.n_smallest[unit]
                if sets and len(sets[0]) < depth:
                    assert witness == sets[0] and n == len(sets)
                    kinds.add("found")
                else:
                    assert witness is None and n == (0 if depth == n_units else None)
                    kinds.add("none" if depth == n_units else "open")
    assert kinds == {"found", "none", "open"}


def test_sizes_end_where_every_unit_has_a_set_on_every_image() -> None:
    ran: list[int] = []

    def slack(masks: Tensor) -> Tensor:
        ran.append(int(masks.sum(1)[0]))
        # Any unit flips the first image, any two the second.
        return torch.tensor([0.5, 1.5]) - masks.sum(1, keepdim=True)

    search = Search(max_contingency=4)
    one, two = try_every_set(6, 2, slack, search)
    assert ran == [1, 2] and one.found.n_sets == two.found.n_sets == 6 + 15
    assert one.found.n_smallest == (1,) * 6 and two.found.n_smallest == (5,) * 6
    assert not two.goes_on(search) and two.found.exact.all()


def test_a_beam_does_not_count() -> None:
    def slack(sets: Sequence[Units]) -> Tensor:
        return torch.tensor([2.5 - len(set(units) & {0, 1, 2, 3}) for units in sets])

    def of_masks(masks: Tensor) -> Tensor:
        return slack([tuple(m.nonzero().flatten().tolist()) for m in masks])[:, None]

    search = Search(max_contingency=1)
    (tried,) = try_every_set(6, 1, of_masks, search)
    found = grow_sets(tried, slack, search)
    assert [None if w is None else len(w) for w in found.witness] == [2] * 4 + [None] * 2
    assert found.n_smallest == (None,) * 6 and found.exact.tolist() == [True] * 4 + [False] * 2


class _Folded(nn.Module):
    """Images and positions fold into one dimension: what a row lacks cannot be masked there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.fc = (
            nn.Conv2d(1, 4, 3, stride=2),
            nn.Linear(4, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        tokens = maps.flatten(2).transpose(1, 2).reshape(-1, 4)
        return self.fc(self.inner(tokens).relu().view(-1, 20, 5).mean(1))


def _sequential() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 20, 5)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(5, 3))


def _without(model: nn.Module, x: Tensor, name: str, n_units: int) -> dict[Units, Tensor]:
    """Logits of all images without every set of units of a group, by whole forward passes."""
    graph, logits = capture(model, x[:1]), {}
    for size in range(1, n_units + 1):
        for units in itertools.combinations(range(n_units), size):
            with torch.no_grad(), removed(model, graph, {name: list(units)}):
                logits[units] = model(x)
    return logits


@pytest.mark.parametrize("network", [_sequential, _Folded])
@pytest.mark.parametrize("theta", [None, 0.05])
def test_tables_of_several_images_by_definition(
    network: Callable[[], nn.Module], theta: float | None
) -> None:
    model = networks.settle(network(), seed=int(torch.randint(1000, ()))).double()
    x = torch.randn(11, 1, 9, 11, dtype=torch.float64)
    scores = score(model, x, "blame", batch_size=10, theta=theta, max_contingency=4)
    with torch.no_grad():
        plain = model(x)
    for name, rows in scores.tables["contingencies"].groupby("group"):
        n_units = int(rows["unit"].max()) + 1
        logits = _without(model, x, str(name), n_units)

        def flips(units: Units, image: int, logits: dict[Units, Tensor] = logits) -> bool:
            before, now = plain[image], logits[units][image]
            label = before.argmax()
            if theta is None:
                return bool(now.argmax() != label)
            return bool(now.softmax(0)[label] < before.softmax(0)[label] - theta)

        assert len(rows) == 11 * n_units
        for row in rows.itertuples():
            sets = _smallest(n_units, row.unit, functools.partial(flips, image=row.image))
            assert row.exact and row.n_contingencies == len(sets)
            assert row.contingency == (len(sets[0]) if sets else -1)
            assert row.witness == (" ".join(map(str, sets[0])) if sets else "")


def test_images_that_share_rows_find_what_each_finds_alone() -> None:
    """Also where a beam goes on."""
    model = networks.settle(_sequential(), seed=int(torch.randint(1000, ()))).double()
    x = torch.randn(9, 1, 9, 11, dtype=torch.float64)
    options = {"theta": 0.1, "max_contingency": 0, "beam_width": 2, "beam_contingency": 3}
    together = score(model, x, "blame", **options).tables["contingencies"]
    for image, rows in together.groupby("image"):
        alone = score(model, x[[image]], "responsibility", form="exact", **options)
        table = alone.tables["contingencies"].drop(columns="image")
        rows = rows.drop(columns="image").reset_index(drop=True)
        assert rows.equals(table.reset_index(drop=True))
    assert (together["contingency"] > 0).any()
