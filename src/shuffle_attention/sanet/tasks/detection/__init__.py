"""Object detection and instance segmentation; COCO data need ``pip install shuffle-attention[detection]``."""
