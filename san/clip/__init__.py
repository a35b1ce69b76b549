"""Everything about CLIP, in plain torch: loading, the image tower in two parts, the text classifier."""
