"""What `pgraft-fast` and `python -m pgraft_fast` start: Ctrl-C ends in one line while libraries are loaded, too."""

import sys


def main() -> int:
    """Entry point; returns the exit status, see `pgraft_fast.cli`."""
    from pgraft_fast.errors import InputError
    from pgraft_fast.extras import CLI, need

    try:
        need("the command line", *CLI)
        from pgraft_fast.cli import main as run
    except InputError as error:
        print(f"pgraft-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pgraft-fast: stopped", file=sys.stderr)
        return 130
    from pgraft_fast.ranks.launch import leave_status

    return leave_status(run())


if __name__ == "__main__":
    sys.exit(main())
