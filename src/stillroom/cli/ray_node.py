"""What one machine of a Ray cluster does of a run; :mod:`stillroom.cluster.ray_machine` starts it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from stillroom.cluster.ray_machine import Part, answer, end_with
from stillroom.core.errors import RunError, translate


def main() -> None:
    """Machine 0 goes through the run; the others serve it."""
    part = Part.read(sys.argv[1])
    end_with(part.parent)
    os.set_inheritable(part.answer, False)
    try:
        _take_part(part)
    except BaseException as error:
        known = translate(error)
        if known is None:
            raise
        answer(part, known)
        sys.exit(known.exit_code)


def _take_part(part: Part) -> None:
    if not Path(part.run).is_dir():
        raise RunError(
            f"{part.run} is not there on node {part.rank} ({socket.gethostname()}).",
            "Give the run a folder on a file system that all machines share, at the same path: --runs FOLDER.",
        )
    from stillroom import pipeline
    from stillroom.cluster.cluster import Cluster
    from stillroom.cluster.launch import serve
    from stillroom.cluster.node import Node
    from stillroom.cluster.nodes import Nodes
    from stillroom.core.progress import Progress
    from stillroom.core.telemetry import turn_off

    turn_off()
    nodes = Nodes(Node(part.rank, part.count, part.host, part.port, part.workers)) if part.count > 1 else None
    if part.rank == 0:
        pipeline.run(part.run, until=part.until, quiet=part.quiet, cluster=Cluster(part.workers, nodes=nodes))
        return
    assert nodes is not None
    given, root = pipeline.recipe_and_root(Path(part.run))
    serve(root / given.name, given, nodes, Progress(part.quiet))


if __name__ == "__main__":
    main()
