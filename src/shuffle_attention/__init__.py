"""SA-Net: shuffle attention for deep convolutional networks.

Importing this package loads PyTorch and nothing more; ``shuffle_attention.models`` registers the
SA-ResNets with timm, ``shuffle_attention.families`` also those with other attention.
"""

from importlib.metadata import version

from .attention import attention_names, create_attention
from .checkpoints import load_checkpoint
from .layers import ShuffleAttention, SpatialGroupEnhance
from .surgery import AttachReport, attach, detach

__all__ = [
    "AttachReport",
    "ShuffleAttention",
    "SpatialGroupEnhance",
    "attach",
    "attention_names",
    "create_attention",
    "detach",
    "load_checkpoint",
]
__version__ = version("shuffle-attention")
