"""A Ray cluster of two nodes on this machine, in a process of its own: for tests and benchmarks.

    python tools/cluster.py PORT [CLIENT_PORT]      # of the dashboard; of Ray's clients

Prints its address, then does what stdin says, line by line. `worker`: kill the second node. `replace`: add one in its
place. `head`: kill the head. `end`: stop everything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GIB = 2**30


class Nodes:
    """The cluster's process.

    Attributes:
        address: of its dashboard, as SWM_EXECUTOR takes it.
    """

    def __init__(self, *ports: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        environment |= {"RAY_enable_metrics_collection": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(free_port()), *map(str, ports)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.address = next((line.strip() for line in self._said() if line.startswith("http")), "")

    def tell(self, what: str) -> None:
        """Have one of the commands done."""
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        if not any(line.strip() == f"done {what}" for line in self._said()):
            raise RuntimeError(f"The cluster ended before it did: {what}")

    def end(self) -> None:
        """Stop all its processes."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self.tell("end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def _said(self) -> Any:
        return iter(self.process.stdout or ())


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int, client_port: int | None) -> None:
    """Run the cluster until stdin says `end`. Each node has one CPU, and a resource by its name."""
    from ray.cluster_utils import Cluster

    def node(name: str, memory: int) -> dict[str, Any]:
        # an agent's port of its own, so that two clusters can be on one machine
        return {
            "num_cpus": 1,
            "object_store_memory": 80_000_000,
            "memory": memory,
            "resources": {name: 1},
            "dashboard_agent_listen_port": free_port(),
        }

    head = {**node("head", 4 * GIB), "dashboard_host": "127.0.0.1", "dashboard_port": port, "include_dashboard": True}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**head, **({"ray_client_server_port": client_port} if client_port else {})},
    )
    worker = cluster.add_node(**node("worker", 12 * GIB))
    cluster.wait_for_nodes()
    print(f"http://127.0.0.1:{port}", flush=True)
    for line in sys.stdin:
        what = line.strip()
        if what == "worker":
            cluster.remove_node(worker, allow_graceful=False)
        elif what == "replace":
            worker = cluster.add_node(**node("worker", 12 * GIB))
        elif what == "head":
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        print(f"done {what}", flush=True)
        if what == "end":
            break
    cluster.shutdown()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
