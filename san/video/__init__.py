"""Videos: queries shared by the frames of a chunk, and reading and writing video files (docs/video.md)."""
