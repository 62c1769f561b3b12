"""``python -m causalprune``: the same command line, also for ``torchrun -m causalprune``."""

from __future__ import annotations

from causalprune.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
