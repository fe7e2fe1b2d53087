"""Training of any task: the loop, the state of a run, and the files that a run leaves."""
