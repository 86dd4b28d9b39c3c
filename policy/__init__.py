"""What the owner of a ComfyUI says once must not be drawn, and every graph that is queued there keeps to."""
