"""Image classification: what is trained, how it is evaluated, and what its report shows."""
