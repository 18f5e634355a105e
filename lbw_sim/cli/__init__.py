"""`lbw`: one file per command, a few lines each. Heavy imports happen inside the command that needs them.

Errors meant for the user are one line on standard error and exit code 2; results go to standard output.
"""

from __future__ import annotations

import sys

from lbw_sim.errors import LbwError


def main() -> None:
    """Entry point of the `lbw` console script."""
    from lbw_sim.cli.app import app

    try:
        app(prog_name="lbw")
    except LbwError as error:
        print(f"lbw: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        # only torch is optional among what commands import
        if error.name != "torch":
            raise
        print("lbw: this command trains models and needs torch: pip install 'lbw-sim[live]'", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # `lbw … | head`: the reader has seen enough
        sys.stderr.close()
        sys.exit(0)
