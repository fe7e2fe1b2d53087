"""What networks cost, beside each other and beside what was published."""
