"""The service of `san serve` on Ray Serve: replicas on one or many machines, which share the kept images.

pip install "san-segmentation[serve]" "ray[serve]"
python examples/ray_serve.py --model shapes --replicas 2 --port 8000

Ray starts, scales and replaces the replicas, and sends each request to one of them. An image_id may reach any replica,
so kept images are in an actor, whose memory limit and expiry are those of `san serve`. It also holds the model, because
an encoded image fits only copies of the model that made it. Tested with Ray 2.60 on one machine.
"""

import argparse
import signal

import ray
from ray import serve

from san.inference.predictor import Predictor
from san.serve.app import create_app
from san.serve.limits import ServeLimits
from san.serve.service import SegmentService, memory_store

ACTOR, NAMESPACE = "san-images", "san"
LIMITS = ServeLimits()


@ray.remote(num_cpus=0)
class SharedImages:
    """The model, and the kept images of all replicas."""

    def __init__(self, model: str) -> None:
        self._predictor = Predictor.from_pretrained(model, text_cache=None)
        self._store = memory_store(LIMITS)

    def predictor(self) -> Predictor:
        """Return the model; every caller gets a copy."""
        return self._predictor

    def call(self, method: str, *arguments: object) -> object:
        """Call a method of the store."""
        return getattr(self._store, method)(*arguments)


class RemoteStore:
    """The store of `SharedImages`, as `SegmentService` uses it."""

    def __init__(self, actor: "ray.actor.ActorHandle") -> None:
        self._actor = actor

    def __getattr__(self, method: str):
        return lambda *arguments: ray.get(self._actor.call.remote(method, *arguments))


def build():
    """Return a replica's application."""
    actor = ray.get_actor(ACTOR, NAMESPACE)
    return create_app(SegmentService(ray.get(actor.predictor.remote()), LIMITS, store=RemoteStore(actor)))


@serve.deployment(max_ongoing_requests=LIMITS.max_waiting, health_check_period_s=10)
@serve.ingress(build)
class Replica:
    """One copy of the model; give it a GPU with ray_actor_options={"num_gpus": 1}."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cpus", type=float, default=1, help="of a replica")
    args = parser.parse_args()
    ray.init(namespace=NAMESPACE)
    images = SharedImages.options(name=ACTOR).remote(args.model)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(Replica.options(num_replicas=args.replicas, ray_actor_options={"num_cpus": args.cpus}).bind())
    print(f"The service runs at http://127.0.0.1:{args.port}/ (Ctrl+C ends it)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()
