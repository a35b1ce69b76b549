"""The HTTP service: segments pictures with any words (docs/serve.md).

`engine` owns the model, `service` connects requests with it, `forms` reads requests, `answers` writes results, `app`
has the routes, `metrics` counts, and `server` runs it. Needs the extra `serve`; only `san serve` imports this room.
"""
