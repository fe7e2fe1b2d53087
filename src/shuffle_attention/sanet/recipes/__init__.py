"""Recipes: the settings of a run, from YAML files, the command line or Python."""
