"""What a network attends to: class activation maps, the gates of shuffle attention, and figures for both.

The maps need ``pip install shuffle-attention[explain]``.
"""

from .gates import Gates, destinations, gates
from .groups import GroupScores, group_scores
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
