"""Images with labels or objects: find, check and decode them, and make batches of them."""
