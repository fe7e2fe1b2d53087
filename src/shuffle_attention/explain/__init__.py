"""Explain what a model attends to: class activation maps, the gates of shuffle attention, and scores for the maps.

Maps and scores need ``pip install shuffle-attention[explain]``.
"""

from .gates import Activity, Gates, GroupScores, destinations, gate_activity, gates, group_scores
from .maps import METHODS, Explanation, explain
from .scores import Faithfulness, faithfulness

__all__ = [
    "METHODS",
    "Activity",
    "Explanation",
    "Faithfulness",
    "Gates",
    "GroupScores",
    "destinations",
    "explain",
    "faithfulness",
    "gate_activity",
    "gates",
    "group_scores",
]
