"""Train one recipe with several models and seeds, and compare the results."""
