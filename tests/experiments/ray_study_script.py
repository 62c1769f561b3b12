"""A study on a local cluster of two nodes, disturbed in every way; writes what was seen as JSON.

Run by test_study_ray.py in a process of its own: Ray's processes and warnings stay out of pytest's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"

import psutil
import ray
from ray.cluster_utils import Cluster

from causalprune.errors import ClusterError
from causalprune.experiments import study_ray
from causalprune.experiments.study import Study

NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}

# Ray gives a node 30 seconds to start, which a machine with other work on it may exceed; there it
# may also lose its first workers before any has run a trial.
NOT_STARTED = 75


def after_the_next_trial(act: Callable[[], None]) -> None:
    """Do something as soon as the study has recorded one more trial: others are under way then."""
    record = study_ray._record

    def recorded(run: Any, reference: Any) -> None:
        record(run, reference)
        study_ray._record = record
        act()

    study_ray._record = recorded


def within(seconds: float, ready: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def error_of(run: Callable[[], object]) -> str:
    try:
        run()
    except (ClusterError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def counts(study: Study) -> list[int]:
    status = study.status()
    return [status.ok, status.failed, status.running, status.queued]


def main(folder: Path) -> dict[str, Any]:
    study = Study.from_file(folder / "small.yaml", folder / "cluster")
    wide = Study.from_file(folder / "wide.yaml", folder / "wide")
    seen: dict[str, Any] = {}
    try:
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": FAST})
        second = cluster.add_node(**NODE)
    except Exception:  # so says Ray: nothing narrower
        traceback.print_exc()
        sys.exit(NOT_STARTED)

    seen["wide"] = error_of(
        lambda: wide.run(executor="ray", address=cluster.address, progress=False)
    )
    seen["ours is shut down"] = not ray.is_initialized()
    seen["wide counts"] = counts(wide)

    ray.init(address=cluster.address, log_to_driver=False)

    def run() -> object:
        return study.run(executor="ray", progress=False)

    version, study_ray.version = study_ray.version, lambda name: "0.0.1"
    seen["version"] = error_of(run)
    study_ray.version = version
    seen["version counts"] = counts(study)

    def kill_second() -> None:
        seen["counts when killed"] = counts(study)
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):  # as a power cut would
            with suppress(psutil.NoSuchProcess):
                process.kill()
        cluster.remove_node(second, allow_graceful=False)

    after_the_next_trial(lambda: os.kill(os.getpid(), signal.SIGINT))
    seen["interrupted"] = error_of(run)
    if study.status().finished == 0:
        print(f"before the first trial had ended: {seen['interrupted']}", flush=True)
        sys.exit(NOT_STARTED)
    seen["interrupted counts"] = counts(study)
    free = ray.available_resources
    seen["nodes are free again"] = within(90, lambda: free().get("CPU") == 2)
    after_the_next_trial(kill_second)
    seen["after"] = error_of(run)
    seen["after counts"] = counts(study)
    seen["users is kept"] = ray.is_initialized()
    seen["second node is gone"] = within(
        60, lambda: [n["Alive"] for n in ray.nodes()].count(True) == 1
    )
    ray.shutdown()
    cluster.shutdown()
    return seen


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "seen.json").write_text(json.dumps(main(place)))
