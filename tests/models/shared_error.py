"""An error in one of several processes reaches all: prints what each of them raised."""

from swm.errors import PlanError
from swm.models.processes import rank, shared


def compute(items):
    if 3 in items:
        raise PlanError("3 cannot be planned")
    return items


number = rank()
try:
    shared([1, 2, 3, 4], compute)
    print(f"{number}: nothing", flush=True)
except PlanError as error:
    print(f"{number}: {error}", flush=True)
print(f"{number}: {shared([5, 6, 7], lambda items: [2 * item for item in items], float)}", flush=True)
