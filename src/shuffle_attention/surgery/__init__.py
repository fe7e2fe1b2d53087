"""Attention put into any network and taken out again, with what the network computes preserved."""

from .attaching import AttachReport, attach, detach

__all__ = ["AttachReport", "attach", "detach"]
