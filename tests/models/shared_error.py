"""An error in one of several processes reaches all: prints what each of them raised."""

import sys

from swm.errors import PlanError
from swm.models.processes import leave, rank, shared


def compute(items):
    if 3 in items:
        raise PlanError("3 cannot be planned")
    return items


def say(what):
    sys.stdout.write(f"{rank()}: {what}\n")  # in one piece: the other process writes to the same place
    sys.stdout.flush()


try:
    shared([1, 2, 3, 4], compute)
    say("nothing")
except PlanError as error:
    say(error)
say(shared([5, 6, 7], lambda items: [2 * item for item in items], float))
leave()
