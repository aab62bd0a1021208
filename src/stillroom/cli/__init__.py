"""The command line: one file per group of commands."""

from stillroom.cli.app import main as main
