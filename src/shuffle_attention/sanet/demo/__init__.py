"""A local web page that shows what networks make of an image; ``sanet demo`` starts it.

It needs ``pip install shuffle-attention[demo]``; all but :mod:`.page` and the start of the server does without Gradio.
"""
