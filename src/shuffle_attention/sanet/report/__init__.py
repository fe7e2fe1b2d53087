"""HTML files that stand for themselves: templates filled in, pictures embedded."""
