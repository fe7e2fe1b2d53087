"""Attention put into any network and taken out again, with what the network computes preserved."""

from .api import AttachReport, attach, detach

__all__ = ["AttachReport", "attach", "detach"]
