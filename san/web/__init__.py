"""What the demo and the service share: limits, guarded uploads, words of strangers, connections; no web framework.

`limits` has the limits of input, `uploads` reads bodies of requests, `decoding` decodes pictures in a process of its
own, `words` checks and embeds vocabularies, `store` keeps items under random names, `connections` limits uvicorn's
connections, and `listening` opens the port.
"""
