"""The workbench behind the command ``sanet``."""
