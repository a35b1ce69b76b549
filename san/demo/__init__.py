"""The web page: segments a visitor's picture with any words (docs/demo.md).

`limits` has the limits per visitor, `decoding` decodes uploads in a process of its own, `service` runs the model,
`view` makes what the page draws, `mailbox` keeps pictures and results between two requests, `connections`, `hosts` and
`guard` protect Gradio, and only `page` imports Gradio.
"""
