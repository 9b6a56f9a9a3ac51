"""Kills a publisher at each of its lines, in a child for each, and tells what a replica sees then: one JSON a line.

A program of its own, because a child is forked for each line, and nothing else may run beside a fork.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ccr import canary, log
from ccr.weights import checksum, parse
from router.publishing.follower import Follower
from router.publishing.publisher import Publisher
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from tests.router.publishing.publications import KEY, Told, weights_file

EVERY = 3  # a step of a publisher is some lines
MOST = 200


def open_store(kind, place, round_):
    """Where each round is a minute later: the lease of the one killed before has run out."""
    if kind == "embedded":
        return EmbeddedStore(Path(place), wall=lambda: time.time() + 60.0 * round_)
    store = RedisStore(place, timeout_s=5.0)
    store._redis.delete("ccr:lease:weights")
    return store


def publish_until_killed(kind, place, round_, name):
    """In the child: publish, and die at a line; exit code 0 if the lines are over before."""
    left = EVERY * round_

    def trace(frame, event, _):
        nonlocal left
        if not {"store", "publishing"} & set(Path(frame.f_code.co_filename).parts):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    publisher = Publisher(open_store(kind, place, round_), KEY)
    sys.settrace(trace)
    publisher.publish(weights_file(name))
    sys.settrace(None)
    os._exit(0)


def seen(kind, place, round_):
    """What a replica sees that comes now."""
    told = Told()
    follower = Follower(open_store(kind, place, round_), KEY, told)
    follower.look()
    publication = Publisher(follower._store, KEY).current()
    is_whole = follower._store.blob(publication.sha256) == weights_file(told.names[-1])
    return {"name": told.names[-1], "refused": dict(follower.state.refused), "is_whole": is_whole}


def remember_walks():
    """The canary takes most of a round, and always finds the same: here it is asked once for each file."""
    walk, known = canary.walk, {}

    def remembered(network, _=None):
        key = checksum(network)
        known[key] = known.get(key) or walk(network)
        return known[key]

    canary.walk = remembered


def main(kind, place):
    """Round by round until one is not killed any more."""
    log.configure("json", "error")
    remember_walks()
    for name in ("one", "two"):
        parse(weights_file(name), name)
    old = "one"
    Publisher(open_store(kind, place, -1), KEY).publish(weights_file(old))
    for round_ in range(MOST):
        new = "two" if old == "one" else "one"
        child = os.fork()
        if child == 0:
            publish_until_killed(kind, place, round_, new)
        _, status = os.waitpid(child, 0)
        assert status in {0, signal.SIGKILL}, status
        found = seen(kind, place, round_)
        sys.stdout.write(json.dumps({"old": old, "new": new, **found}) + "\n")
        sys.stdout.flush()
        old = found["name"]
        if status == 0:
            return
    raise SystemExit("the lines are never over")


if __name__ == "__main__":
    main(*sys.argv[1:])
