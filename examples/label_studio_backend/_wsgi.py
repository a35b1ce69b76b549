"""The web server's entry: ``gunicorn _wsgi:app`` in this folder, or ``python _wsgi.py`` for a test."""

import os

from label_studio_ml.api import init_app
from model import SANBackend

app = init_app(model_class=SANBackend)

if __name__ == "__main__":
    app.run(host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "9090")))
