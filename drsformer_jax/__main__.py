"""Starts the `drsformer` command; `python -m drsformer_jax` does so too."""

from __future__ import annotations

import signal


def main() -> None:
    """Runs the command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback on Ctrl-C during the imports.
    from drsformer_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
