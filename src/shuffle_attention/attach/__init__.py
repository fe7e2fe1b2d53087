"""Attention inserted into any model and removed again, without touching the model's weights."""

from .api import AttachReport, attach, detach

__all__ = ["AttachReport", "attach", "detach"]
