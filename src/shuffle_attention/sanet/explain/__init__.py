"""Images, charts and files of ``sanet explain``."""
