"""Run the benchmarks and print their tables."""

import argparse
import sys

from benchmarks import layers, logging_cost, networks, nielsen, saving

ITEMS = {"nielsen": nielsen.main, **networks.ITEMS, **layers.ITEMS, "logging": logging_cost.main, "saving": saving.main}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help=f"comma-separated names from: {', '.join(ITEMS)}")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(ITEMS)
    unknown = [name for name in names if name not in ITEMS]
    if unknown:
        print(f"benchmarks: unknown item {unknown[0]!r}; expected one of {', '.join(ITEMS)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"## {name}\n")
        if ITEMS[name].__doc__:
            print(f"{ITEMS[name].__doc__}\n")
        ITEMS[name]()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
