"""The web server's entry: ``gunicorn _wsgi:app`` in this folder, or ``python _wsgi.py`` for a test.

Do not give gunicorn --preload: a forked process cannot use a model that was loaded before.
"""

import os

from label_studio_ml.api import init_app
from model import SANBackend, predictor

predictor()  # a wrong SAN_MODEL ends the server now, not at the first prediction
app = init_app(model_class=SANBackend)

if __name__ == "__main__":
    app.run(host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "9090")))
