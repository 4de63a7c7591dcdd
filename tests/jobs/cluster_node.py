"""A Ray cluster of two nodes in a process of its own: prints its address, then does what stdin says, line by line.

Arguments: port of the dashboard; optionally that for Ray clients.

`head`: kill the head. `worker`: kill the second node. `end`: stop everything.
"""

import socket
import sys

from ray.cluster_utils import Cluster

PORTS = {"dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[1]), "include_dashboard": True}


def agent_port():
    """A port of its own for a node's agent, so that two clusters can be on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"dashboard_agent_listen_port": probe.getsockname()[1]}


head = {
    "num_cpus": 1,
    "object_store_memory": 80_000_000,
    "memory": 4 * 2**30,
    "resources": {"head": 1},
    **PORTS,
    **agent_port(),
}
if len(sys.argv) > 2:
    head["ray_client_server_port"] = int(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args=head)
own = {"num_cpus": 1, "object_store_memory": 80_000_000, "memory": 12 * 2**30, "resources": {"worker": 1}}
worker = cluster.add_node(**own, **agent_port())
cluster.wait_for_nodes()
print(f"http://127.0.0.1:{sys.argv[1]}", flush=True)
for line in sys.stdin:
    if line.strip() == "worker":
        cluster.remove_node(worker, allow_graceful=False)
    elif line.strip() == "head":
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    print(f"done {line.strip()}", flush=True)
    if line.strip() == "end":
        break
cluster.shutdown()
