"""A Valkey that is a node of a cluster."""

from __future__ import annotations

from streamer.operations.embedded import ValkeyServer
from tests.support.process import free_port


class ClusterNode(ValkeyServer):
    """A node of a cluster, without slots."""

    def _command(self) -> list[str]:
        ours = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"]
        # the nodes need the default frequency
        return [*super()._command(), *ours, "--cluster-port", str(free_port()), "--hz", "10"]
