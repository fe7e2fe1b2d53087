"""Backends of the ops, one file or folder per backend."""
