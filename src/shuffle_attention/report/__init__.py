"""The report that a run or a comparison ends with: one HTML file that needs nothing beside it."""
