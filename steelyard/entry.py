"""Where the program begins: a receipt's answer where there is one, else the command. Loads nothing before it must."""

import gc
import sys


def main() -> None:
    from steelyard.again import answered

    # Ten thousand states are made and kept to the end: there is nothing to collect on the way, and nothing to look for at it.
    gc.disable()
    try:
        if answered(sys.argv[1:]):
            gc.freeze()
            return
    except KeyboardInterrupt:
        sys.exit(130)
    gc.enable()
    from steelyard.cli import main as command

    command()
