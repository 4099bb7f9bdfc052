"""Run the benchmarks and print their tables."""

import argparse
import sys
from pathlib import Path

from benchmarks.contestants import ENTRIES
from benchmarks.works import WORKS

OTHERS = ("roofline", "growth", "startup", "repeat", "layers", "logging", "saving")
LATEST = Path(__file__).parent / "latest"


def other(name: str, folder: Path) -> None:
    """An item that is no contest."""
    from benchmarks import growth, layers, logging_cost, roofline, saving, startup

    items = {
        "roofline": roofline.main,
        "startup": startup.main,
        "logging": logging_cost.main,
        "saving": saving.main,
    }
    items |= layers.ITEMS
    main = (lambda: growth.main(folder)) if name == "growth" else items[name]
    text = growth.main.__doc__ if name == "growth" else main.__doc__
    if text:
        print(f"{text}\n")
    main()


def chosen(kind: str, given: str | None, known: list[str]) -> list[str]:
    """Names out of a comma-separated list; all where none is given."""
    names = given.split(",") if given else known
    for name in names:
        if name not in known:
            print(
                f"benchmarks: unknown {kind} {name!r}; expected one of {', '.join(known)}",
                file=sys.stderr,
            )
            raise SystemExit(2)
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", help=f"comma-separated items from: {', '.join([*WORKS, *OTHERS])}"
    )
    parser.add_argument(
        "--contestants",
        help=f"comma-separated, the first is what others are divided by: {', '.join(ENTRIES)}",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often each contestant takes its turn (7)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=LATEST,
        help="folder for contest.md, .json, .png and growth.png",
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    items = chosen("item", options.only, [*WORKS, *OTHERS])
    contestants = chosen("contestant", options.contestants, list(ENTRIES))
    found = {}
    for name in items:
        print(f"## {name}\n", flush=True)
        if name in WORKS:
            from benchmarks import contest, report

            print(f"{WORKS[name].about}\n")
            found[name] = contest.contest(name, contestants, options.rounds)
            print(report.table(name, found[name]), flush=True)
        else:
            other(name, options.output)
        print()
    if found:
        print(report.summary(found))
        print("\n" + "\n".join(str(path) for path in report.write(found, options.output)))
    return int(any(result.error for results in found.values() for result in results))


if __name__ == "__main__":
    sys.exit(main())
