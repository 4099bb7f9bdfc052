"""The entry of the ``fbp`` command and of ``python -m fbp``, which needs nothing but Python."""

import sys

from fbp._optional import require
from fbp.errors import MissingDependency


def main() -> None:
    """Run the command line; print one line and exit with status 2 if it is not installed."""
    try:
        require("the fbp command", "click", "rich")
    except MissingDependency as error:
        print(f"fbp: {error}", file=sys.stderr)
        sys.exit(2)
    from fbp.cli import main as command_line

    command_line(prog_name="fbp")


if __name__ == "__main__":
    main()
