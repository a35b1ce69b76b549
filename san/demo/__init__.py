"""The page in the browser: masks for any words, of a picture that its visitor gives (docs/demo.md).

`limits` says how much a visitor may ask for, `pictures` reads what was uploaded, in the process of `decoding`,
`service` runs the model, `view` makes what the page draws, `mailbox` keeps pictures and results between two requests,
`connections`, `hosts` and `guard` stand between the network and Gradio, `page` is the only file that imports Gradio.
"""
