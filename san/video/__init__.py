"""Segmentation of videos with queries shared by chunks of frames, and video files (docs/video.md)."""
