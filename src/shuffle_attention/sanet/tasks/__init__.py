"""Tasks: what can be trained, one folder per task."""
