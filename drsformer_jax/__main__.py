"""Starts the `drsformer` command; `python -m drsformer_jax` does so too."""

from __future__ import annotations

from drsformer_jax.errors import before_imports


def main() -> None:
    """Runs the command line."""
    before_imports()
    from drsformer_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
