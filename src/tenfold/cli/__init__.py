"""The command line: finds the rooms' commands, runs one, and prints an error as one sentence."""

import os
import sys

from tenfold.cli.commands import run
from tenfold.cli.options import UsageError
from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import set_waiting_policy


def main() -> None:
    """Run `tenfold`. The exit status is 1 after an error, 2 after wrong usage, 130 after Ctrl-C."""
    set_waiting_policy()  # before any command loads PyTorch
    try:
        run(sys.argv[1:])
    except TenfoldError as error:
        if os.environ.get("TENFOLD_DEBUG"):
            raise
        print(f"tenfold: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("tenfold: stopped.", file=sys.stderr)
        sys.exit(130)
