"""Run the benchmarks and print their tables."""

import argparse
import sys
from pathlib import Path

from benchmarks.contestants import ENTRIES
from benchmarks.works import WORKS

OTHERS = ("roofline", "growth", "startup", "repeat", "layers", "logging", "saving")
LATEST = Path(__file__).parent / "latest"


def other(name: str, folder: Path) -> None:
    """Run an item that is not a contest."""
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


def parse_names(kind: str, text: str | None, known: list[str]) -> list[str]:
    """Return the names in a comma-separated list; all known ones if it is empty or None."""
    names = text.split(",") if text else known
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
        help=f"comma-separated; the first is the baseline of all ratios: {', '.join(ENTRIES)}",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="number of timed rounds of each contestant (7)"
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
    items = parse_names("item", options.only, [*WORKS, *OTHERS])
    contestants = parse_names("contestant", options.contestants, list(ENTRIES))
    results_by_work = {}
    for name in items:
        print(f"## {name}\n", flush=True)
        if name in WORKS:
            from benchmarks import contest, report

            print(f"{WORKS[name].about}\n")
            results_by_work[name] = contest.contest(name, contestants, options.rounds)
            print(report.table(name, results_by_work[name]), flush=True)
        else:
            other(name, options.output)
        print()
    if results_by_work:
        print(report.summary(results_by_work))
        print("\n" + "\n".join(str(path) for path in report.write(results_by_work, options.output)))
    return int(any(result.error for results in results_by_work.values() for result in results))


if __name__ == "__main__":
    sys.exit(main())
