"""The same recipe for several networks and seeds, and what they differ by."""
