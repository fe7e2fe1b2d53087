"""Reports as self-contained HTML files: templates with embedded images."""
