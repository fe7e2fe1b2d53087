"""SA-Net: shuffle attention for deep convolutional networks.

Importing this package loads PyTorch and nothing more; ``shuffle_attention.models`` registers the
SA-ResNets, and those with other attention, with timm.
"""

from importlib.metadata import version

from .attach import AttachReport, attach, detach
from .attention import ShuffleAttention, SpatialGroupEnhance, attention_names, create_attention, old_paths
from .checkpoints import load_checkpoint

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

old_paths.install()
