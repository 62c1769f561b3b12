"""Reading a study from a file, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.study_file import read_study_file
from causalprune.experiments.study_spec import Shift, StudySpec, study_cells

GOOD = """\
name: small
methods: [l1, random]
ratios: [0.0, 0.5, 0.8]
checkpoints: 2
shifts: ["fog:3", "gaussian_noise:1"]
blocks:
- {network: lenet5, data: digits}
- network: lenet300
  data: digits
  ratios: [0.5]
"""


def file_of(folder: Path, text: str) -> Path:
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def test_blocks_differ_from_what_they_share(tmp_path: Path) -> None:
    spec = read_study_file(file_of(tmp_path, GOOD))
    assert spec.name == "small"
    assert [(b.network, b.ratios, b.checkpoints) for b in spec.blocks] == [
        ("lenet5", (0.0, 0.5, 0.8), 2),
        ("lenet300", (0.5,), 2),
    ]
    assert spec.shifts == (Shift("fog", 3), Shift("gaussian_noise", 1))
    assert StudySpec.from_dict(spec.to_dict()) == spec


def test_noise_has_levels(tmp_path: Path) -> None:
    text = GOOD.replace('"fog:3"', '"noise:0.05", "noise:2"')
    spec = read_study_file(file_of(tmp_path, text))
    assert spec.shifts[:2] == (Shift("noise", 0.05), Shift("noise", 2.0))
    assert [str(shift) for shift in spec.shifts[:2]] == ["noise:0.05", "noise:2"]
    assert StudySpec.from_dict(spec.to_dict()) == spec


def test_numbers_need_no_point(tmp_path: Path) -> None:
    text = GOOD.replace("checkpoints: 2", "learning_rate: 1e-3\nretrain_learning_rate: 5E+1")
    block = read_study_file(file_of(tmp_path, text)).blocks[0]
    assert (block.learning_rate, block.retrain_learning_rate) == (1e-3, 50.0)


def test_a_file_without_name_and_blocks(tmp_path: Path) -> None:
    spec = read_study_file(file_of(tmp_path, "methods: [l1]\n"))
    assert spec.name == "study" and len(spec.blocks) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ratios: [0.0", "ratois: [0.0"), ("line 3", "'ratois'", "did you mean 'ratios'?")),
        (("  ratios: [0.5]", "  xyzzy: 1"), ("line 10", "'xyzzy'", "known: ")),
        (("checkpoints: 2", "checkpoints: 0"), ("line 4", "checkpoints", "0")),
        (("  ratios: [0.5]", "  ratios: [1.5]"), ("ratios", "1.5")),
        (("fog:3", "fog:9"), ("line 5", "shifts", "fog:9")),
        (("fog:3", "noise:0"), ("line 5", "shifts", "noise:level", "above 0", "'noise:0'")),
        (("fog:3", "noise:nan"), ("line 5", "noise:level", "'noise:nan'")),
        (("fog:3", "noise:much"), ("line 5", "noise:level", "'noise:much'")),
        (('"fog:3"', '"noise:0.1", "noise:1e-1"'), ("line 5", "shifts", "once")),
        (("[l1, random]", "l1"), ("line 2", "methods", "list", "'l1'")),
        (("lenet300", "lenet5"), ("line 6", "blocks", "once")),
        (("checkpoints: 2", "checkpoints: 2\ncheckpoints: 3"), ("line 5", "twice")),
        (("name: small", "design: both"), ("line 1", "design", "'both'")),
        (("name: small", "design: randomised"), ("draws", "None")),
        (("name: small", "draws: 3"), ("line 1", "draws", "3")),
        (("name: small", "name: ''"), ("line 1", "name")),
        (("- {network: lenet5, data: digits}", "- lenet5"), ("line 7", "mapping in blocks")),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    assert change[0] in GOOD
    file = file_of(tmp_path, GOOD.replace(*change))
    with pytest.raises(InvalidArgumentError) as caught:
        read_study_file(file)
    assert "study.yaml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: [l1\nratios: [0.5]\n", ("study.yaml, line 2", "not YAML")),
        ("- l1\n", ("expected a mapping",)),
        ("", ("expected a mapping",)),
    ],
)
def test_what_is_no_mapping(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read_study_file(file_of(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_study_file(tmp_path / "none.yaml")


def test_a_grid_has_every_cell_once_in_random_order(tmp_path: Path) -> None:
    spec = read_study_file(file_of(tmp_path, GOOD))
    cells = study_cells(spec)
    found = {(c.block, c.cell.checkpoint, c.cell.method, c.cell.ratio) for c in cells}
    assert len(found) == len(cells) == 2 * 2 * 3 + 2 * 2 * 1
    assert [c.cell.order for c in cells] == list(range(len(cells)))
    assert [c.cell.trial for c in cells] != list(range(len(cells)))
    assert {c.probability for c in cells} == {1 / 6, 1 / 2}
    assert study_cells(spec) == cells


def test_a_randomised_design_draws_within_each_checkpoint(tmp_path: Path) -> None:
    text = GOOD.replace("name: small", "design: randomised\ndraws: 300")
    cells = study_cells(read_study_file(file_of(tmp_path, text)))
    assert len(cells) == 2 * 2 * 300
    first = [c.cell for c in cells if c.block == 0 and c.cell.checkpoint == 1]
    counts = {
        (m, r): sum((c.method, c.ratio) == (m, r) for c in first)
        for m in ("l1", "random")
        for r in (0.0, 0.5, 0.8)
    }
    # Binomial with mean 50 and standard deviation 6.5.
    assert all(20 < count < 80 for count in counts.values()), counts
    assert len({c.seed for c in first}) == len(first)
