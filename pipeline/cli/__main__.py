"""`python -m pipeline.cli` runs the command line without the installed script."""

from pipeline.cli.main import main

main()
