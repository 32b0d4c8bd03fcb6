"""`maas` and `python -m maas_client`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from maas_client.cli.main import run_cli  # typer, which importing maas_client must not pull in

    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
