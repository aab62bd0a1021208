"""``python -m stillroom`` is the command ``stillroom``."""

from stillroom.cli.app import main

main()
