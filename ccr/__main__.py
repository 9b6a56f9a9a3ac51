"""``python -m ccr`` is ``ccr``."""

from ccr.cli import main

main()
