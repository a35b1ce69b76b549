"""The web page: segments a visitor's picture with any words (docs/demo.md).

`limits` has the limits per visitor, `service` runs the model, `view` makes what the page draws, `hosts` and `guard`
protect Gradio, and only `page` imports Gradio. What it shares with the service is in `san.web`.
"""
