"""Training, whatever is trained: the loop, what a run keeps, and what it leaves."""
