"""`python -m pipeline.cli` is the command line without an installed script."""

from pipeline.cli.main import main

main()
