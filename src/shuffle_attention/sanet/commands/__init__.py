"""Subcommands of ``sanet``."""
