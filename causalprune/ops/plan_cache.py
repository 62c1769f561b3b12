"""What is made from a weight once and used on every call: kept with the weight, dropped with it.

Listing nonzeros, packing and timing tiles cost far more than one run. A weight is known by its
memory and by torch's count of writes to it (``Tensor._version``), which all views share. Writes
past torch, by ``weight.data`` or through NumPy, are not counted: :func:`forget_plans` says that
they happened.

- What was made from a state of a weight that is no more is never used.
- A weight that has just been written to gets no plan yet: in training it is written to again
  before the plan would have paid.
- Of every weight the eight plans that were used last are kept, none once its memory is gone.
- Two threads never make the same plan; plans of different weights are made at the same time.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["forget_plans", "kept_plan"]

_PLANS_PER_WEIGHT = 8

Plan = TypeVar("Plan")

# Taken again, by the same thread, when memory of a weight goes while it is held.
_LOCK = threading.RLock()


@dataclass(frozen=True)
class _State:
    """A tensor as it was seen."""

    storage: weakref.ReferenceType[Any]
    place: Hashable
    version: int

    def is_of(self, tensor: Tensor) -> bool:
        return (
            self.storage() is tensor.untyped_storage()
            and self.place == _place(tensor)
            and self.version == tensor._version
        )


@dataclass(frozen=True)
class _Plans:
    weight: _State
    bias: _State | None
    plans: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    making: threading.Lock = field(default_factory=threading.Lock)

    def are_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        if not self.weight.is_of(weight):
            return False
        if self.bias is None or bias is None:
            return self.bias is None and bias is None
        return self.bias.is_of(bias)

    def bias_is_gone(self) -> bool:
        return self.bias is not None and self.bias.storage() is None


# By storage of the weight, then by where the weight and the bias lie.
_OF_STORAGE: dict[int, dict[Hashable, _Plans]] = {}


def _place(tensor: Tensor) -> Hashable:
    return tensor.storage_offset(), tensor.shape, tensor.stride()


def _forget(storage: int) -> None:
    with _LOCK:
        _OF_STORAGE.pop(storage, None)


def _state(tensor: Tensor, when_gone: Callable[[Any], None] | None = None) -> _State:
    storage = weakref.ref(tensor.untyped_storage(), when_gone)
    return _State(storage, _place(tensor), tensor._version)


def _plans_of(weight: Tensor, bias: Tensor | None) -> _Plans | None:
    """Find what is kept of this state of a weight; None if it has just been written to."""
    key = weight.untyped_storage()._cdata
    place: Hashable = _place(weight)
    if bias is not None:
        place = place, bias.untyped_storage()._cdata, _place(bias)
    with _LOCK:
        places = _OF_STORAGE.setdefault(key, {})
        known = places.get(place)
        if known is not None and known.are_of(weight, bias):
            return known
        for other in [k for k, plans in places.items() if plans.bias_is_gone()]:
            del places[other]
        state = _state(weight, lambda _: _forget(key))
        places[place] = _Plans(state, None if bias is None else _state(bias))
        return places[place] if known is None else None


def kept_plan(
    weight: Tensor, bias: Tensor | None, key: Hashable, make: Callable[[], Plan]
) -> Plan | None:
    """Return what `make` once returned for this weight, bias and key.

    Parameters
    ----------
    weight : Tensor
    bias : Tensor, optional
    key : hashable
        All else that the plan depends on.
    make : callable
        Called where no plan is kept; one thread at a time for a weight.

    Returns
    -------
    object or None
        None for a weight that has just been written to, and for one made in inference mode, whose
        writes torch does not count.

    Examples
    --------
    >>> import torch
    >>> weight = torch.ones(2)
    >>> kept_plan(weight, None, "sum", lambda: weight.sum().item())
    2.0
    >>> _ = weight.mul_(3)
    >>> [kept_plan(weight, None, "sum", lambda: weight.sum().item()) for call in range(2)]
    [None, 6.0]
    """
    if weight.is_inference() or (bias is not None and bias.is_inference()):
        return None
    known = _plans_of(weight, bias)
    if known is None:
        return None
    with known.making:
        if key not in known.plans:
            known.plans[key] = make()
            if len(known.plans) > _PLANS_PER_WEIGHT:
                known.plans.popitem(last=False)
        known.plans.move_to_end(key)
        plan: Plan = known.plans[key]
        return plan


def forget_plans(weight: Tensor) -> None:
    """Drop what is kept of a weight, which was written to in a way that torch does not count.

    Parameters
    ----------
    weight : Tensor

    Examples
    --------
    >>> import torch
    >>> weight = torch.ones(2)
    >>> first = kept_plan(weight, None, "sum", lambda: weight.sum().item())
    >>> _ = weight.data.mul_(3)
    >>> forget_plans(weight)
    >>> kept_plan(weight, None, "sum", lambda: weight.sum().item())
    6.0
    """
    _forget(weight.untyped_storage()._cdata)
