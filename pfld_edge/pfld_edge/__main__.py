"""`python -m pfld_edge`: the same program as `pfld-edge`."""

from pfld_edge.cli import main

main()
