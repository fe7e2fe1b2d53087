"""What a network attends to: class activation maps, the gates of shuffle attention, and figures for both.

The maps need ``pip install shuffle-attention[explain]``.
"""

from .cams import METHODS, Explanation, explain
from .faithfulness import Faithfulness, faithfulness
from .gates import Gates, destinations, gates
from .groups import GroupScores, group_scores

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
