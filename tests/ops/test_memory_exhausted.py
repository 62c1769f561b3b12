"""Convolutions where there is no memory left: an error, nothing leaked, and on they go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from causalprune.ops import channel_conv2d, sparse_conv2d

torch.set_num_threads(1)
x, weight = torch.randn(64, 32, 40, 40), torch.randn(32, 32, 3, 3)
weight[torch.rand(weight.shape) < 0.8] = 0
channels = torch.arange(32)
calls = {
    "sparse": lambda x: sparse_conv2d(x, weight, padding=1),
    "channel": lambda x: channel_conv2d(x, weight, None, channels, channels, 32, padding=1),
}
call = calls[sys.argv[1]]


def virtual():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


small = call(x[:1])
out_bytes = 4 * x.numel()
before = virtual()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
# The output finds room, every time: were it leaked, the second would not. What is packed between
# input and output does not.
resource.setrlimit(resource.RLIMIT_AS, (before + out_bytes + 2**22, hard))
for _ in range(20):
    try:
        call(x)
    except MemoryError as error:
        assert "bytes" in str(error), error
    else:
        raise SystemExit("there was memory enough")
    assert virtual() < before + 2**21, (virtual(), before)
assert torch.equal(call(x[:1]), small)  # what fits still runs
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
torch.testing.assert_close(call(x), torch.conv2d(x, weight, padding=1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
@pytest.mark.parametrize("kind", ["sparse", "channel"])
def test_memory_runs_out(kind: str) -> None:
    # The C library would keep what is freed for later, and so hide what is not.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
