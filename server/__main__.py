"""`python -m headway.server`: the `headway` command."""

from headway.server.cli import main

main()
