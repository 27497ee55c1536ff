"""What `steelyard VERB …` becomes where a Prefect API is configured: the same command line, with every verb a flow run."""

import sys

from flows.engine import run_as_flow
from steelyard.cli import main

if __name__ == "__main__":
    main(sys.argv[1:], engine=run_as_flow)
