"""Where the program begins: a receipt's answer where there is one, else the command. Loads nothing before it must."""

import sys


def main() -> None:
    from steelyard.again import answered

    try:
        if answered(sys.argv[1:]):
            return
    except KeyboardInterrupt:
        sys.exit(130)
    from steelyard.cli import main as command

    command()
