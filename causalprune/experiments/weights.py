"""Weights on disk: state dictionaries, read without unpickling anything else."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import DataError, MissingDependencyError
from causalprune.files import file_digest, replace_file

__all__ = ["load_weights", "save_weights", "sha256_of", "state_digest", "weights_content"]


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network's state dictionary in one step: temporary file beside it, rename.

    Parameters
    ----------
    model : nn.Module
        The network, on any device; tensors are written from the CPU.
    path : path-like
        The file; its folder must exist.
    """
    replace_file(path, weights_content(model))


def weights_content(model: nn.Module) -> bytes:
    """Return what `save_weights` writes."""
    stream = io.BytesIO()
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    torch.save(state, stream)
    return stream.getvalue()


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, left_out: Sequence[str] = ()
) -> None:
    """Load a state dictionary into a network.

    Parameters
    ----------
    model : nn.Module
        Changed in place, only if everything fits.
    path : path-like
        A file written by ``torch.save``: a state dictionary, or one under the key
        ``state_dict``; a prefix ``module.`` on every name is taken off. Read with
        ``weights_only=True``. Or a ``.safetensors`` file, where safetensors is installed.
    left_out : sequence of str
        Modules whose tensors the file may have though the network has no such module.

    Raises
    ------
    DataError
        The file is missing or broken, or names and shapes are not the network's.
    MissingDependencyError
        The file is in safetensors' format, which is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> file = Path(tempfile.mkdtemp()) / "layer.pt"
    >>> save_weights(nn.Linear(2, 2), file)
    >>> load_weights(nn.Linear(2, 2), file)
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"weights: no such file {str(file)!r}")
    try:
        content = _read(file)
    except MissingDependencyError:
        raise
    except Exception as error:  # an unpickler trips over bad bytes in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file}: not readable as weights ({reason})") from error
    beside = tuple(f"{name}." for name in left_out)
    state = {
        name: value
        for name, value in _state_of(content, file).items()
        if not name.startswith(beside)
    }
    own = model.state_dict()
    problems = [
        *(
            f"{name} is missing"
            for name in own
            # Files from before torch 0.4.1 do not have these, and nothing in eval mode reads them.
            if name not in state and not name.endswith("num_batches_tracked")
        ),
        *(f"{name} is not in the network" for name in state if name not in own),
        *(
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(
            f"{file}: the weights do not fit the network: {'; '.join(problems[:3])}{more}"
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise DataError(f"{file}: the weights hold NaN or infinity")
    model.load_state_dict(state)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal.

    Raises
    ------
    DataError
        There is no such file.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"weights: cannot read {str(path)!r} ({error.strerror})") from error


def state_digest(model: nn.Module) -> str:
    """Return a short name of a network's state, the same for equal weights in any file.

    Parameters
    ----------
    model : nn.Module
        The network, on any device.

    Returns
    -------
    str
        The first 16 hexadecimal digits of the SHA-256 of names, types, shapes and bytes of its
        state dictionary.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> state_digest(layer) == state_digest(nn.Linear(2, 2))
    False
    """
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        # A view of a tensor without dimensions as bytes needs one to count them along.
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:16]


def _read(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return torch.load(file, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"{file}: reading it needs safetensors: pip install safetensors"
        ) from error
    return load_file(file)


def _state_of(content: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DataError(f"{file}: expected a state dictionary (names to tensors)")
    if content and all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)
