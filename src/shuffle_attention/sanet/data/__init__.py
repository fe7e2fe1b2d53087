"""Images with labels or objects: found, looked over, read, and put into batches."""
