"""Train one contestant at one work, in a process that waits for a line of input before each round.

``python -m benchmarks.worker WORK CONTESTANT`` writes a line of JSON when it is ready, either
``{"first": s, "costs": [...], "packages": {...}}`` or ``{"left out": why}``. Then, for each line
of its input, it trains once from the initial weights and writes
``{"seconds": s, "memory": bytes}``.
The output of libraries goes to the standard error.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    from benchmarks.contestants import ENTRIES
    from benchmarks.works import WORKS

    work, entry = WORKS[sys.argv[1]], ENTRIES[sys.argv[2]]
    try:
        contestant = entry.prepare(work)
    except NotImplementedError as reason:
        say(**{"left out": str(reason)})
        return
    state = contestant.start()
    began = time.perf_counter()
    costs = contestant.train(state)
    seconds = time.perf_counter() - began
    packages = {name: importlib.metadata.version(name) for name in entry.distributions}
    say(first=seconds, costs=costs, packages=packages)
    for _ in sys.stdin:
        state = contestant.start()
        began = time.perf_counter()
        contestant.train(state)
        say(
            seconds=time.perf_counter() - began,
            memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


if __name__ == "__main__":
    main()
