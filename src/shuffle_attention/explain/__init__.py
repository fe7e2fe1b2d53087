"""Explain what a model attends to: class activation maps, the gates of shuffle attention, and scores for the maps.

Maps and scores need ``pip install shuffle-attention[explain]``.
"""

from .gates import Gates, GroupScores, destinations, gates, group_scores
from .maps import METHODS, Explanation, explain
from .scores import Faithfulness, faithfulness

__all__ = [
    "METHODS",
    "Explanation",
    "Faithfulness",
    "Gates",
    "GroupScores",
    "destinations",
    "explain",
    "faithfulness",
    "gates",
    "group_scores",
]
