"""Reading a study from a YAML file, with errors that name the line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments.config import RunConfig
from causalprune.experiments.study_spec import Shift, StudySpec

__all__ = ["STUDY_KEYS", "read_study_file"]

_RUN_KEYS = tuple(entry.name for entry in fields(RunConfig))
STUDY_KEYS = ("name", "blocks", "design", "draws", "shifts", "artefacts")
_LISTS = ("methods", "ratios", "shifts", "latency_batches", "artefacts")


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as everybody but YAML 1.1 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_study_file(path: str | os.PathLike[str]) -> StudySpec:
    r"""Read a study.

    The file is a YAML mapping: ``name``, ``design``, ``draws``, ``shifts``,
    ``artefacts`` as in
    :class:`~causalprune.experiments.study_spec.StudySpec`, the fields of
    :class:`~causalprune.experiments.config.RunConfig` for all blocks, and ``blocks``: a list of
    mappings with the fields in which they differ. Without ``blocks`` there is one.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    DataError
        There is no such file, or it is no YAML mapping; the message has the line.
    InvalidArgumentError
        A key is unknown (the message has the line and the nearest known key) or a value is out of
        range.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "study.yaml"
    >>> _ = file.write_text("methods: [l1]\nratios: [0.0, 0.5]\nblocks:\n- network: lenet300\n")
    >>> spec = read_study_file(file)
    >>> spec.name, spec.blocks[0].network, spec.blocks[0].ratios
    ('study', 'lenet300', (0.0, 0.5))
    >>> _ = file.write_text("methods: [l1]\nratois: [0.5]\n")
    >>> read_study_file(file)
    Traceback (most recent call last):
    ...
    causalprune.errors.InvalidArgumentError: study.yaml, line 2: unknown key 'ratois'; ...
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable text file ({error})") from error
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise DataError(f"{file.name}{line}: not YAML: {problem}") from error
    if not isinstance(root, yaml.MappingNode):
        raise DataError(f"{file.name}: expected a mapping of keys to values")
    _check_keys(file.name, root, (*STUDY_KEYS, *_RUN_KEYS))
    blocks_node = next((v for k, v in root.value if k.value == "blocks"), None)
    for node in getattr(blocks_node, "value", ()):
        if not isinstance(node, yaml.MappingNode):
            raise InvalidArgumentError(
                f"{file.name}, line {node.start_mark.line + 1}: expected a mapping in blocks"
            )
        _check_keys(file.name, node, _RUN_KEYS)
    try:
        return _spec(values, file.stem)
    except InvalidArgumentError as error:
        key = str(error).partition(":")[0]
        raise InvalidArgumentError(f"{file.name}{_line_of(root, key)}: {error}") from error


def _spec(values: Mapping[str, Any], name: str) -> StudySpec:
    values = dict(values)
    for key in _LISTS:
        if key in values and not isinstance(values[key], list):
            raise InvalidArgumentError(f"{key}: expected a list, got {values[key]!r}")
    common = {key: values[key] for key in _RUN_KEYS if key in values}
    blocks = values.get("blocks", [{}])
    if not isinstance(blocks, list):
        raise InvalidArgumentError(f"blocks: expected a list, got {blocks!r}")
    return StudySpec(
        name=values.get("name", name),
        blocks=tuple(_block({**common, **block}) for block in blocks),
        design=values.get("design", "grid"),
        draws=values.get("draws"),
        shifts=tuple(Shift.parse(shift) for shift in values.get("shifts", ())),
        artefacts=tuple(values.get("artefacts", ("plan",))),
        seed=common.get("seed", 0),
    )


def _block(values: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"blocks: {error}") from error


def _check_keys(file: str, node: yaml.MappingNode, known: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value not in known:
            near = difflib.get_close_matches(str(key.value), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise InvalidArgumentError(f"{file}, line {line}: unknown key {key.value!r}; {hint}")
        if key.value in seen:
            raise InvalidArgumentError(f"{file}, line {line}: {key.value!r} is there twice")
        seen.add(key.value)


def _line_of(root: yaml.MappingNode, key: str) -> str:
    """Return ``", line N"`` of the first key of this name, at the top or in a block."""
    for name, value in root.value:
        if name.value == key:
            return f", line {name.start_mark.line + 1}"
        for node in value.value if name.value == "blocks" else ():
            for inner, _ in getattr(node, "value", ()):
                if getattr(inner, "value", None) == key:
                    return f", line {inner.start_mark.line + 1}"
    return ""
