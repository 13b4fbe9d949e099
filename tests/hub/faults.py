"""What goes wrong on the test Hub, by route, and the counters of what reached it.

A fault is a dict: `status` answers with it instead, with `headers` and a `message`; `dropped`
closes the connection and does nothing; `lost` does what was asked and then closes it; `torn` closes
it in the middle of the answer; `cut` closes it after so many bytes of the answer; `delay` waits so
many seconds first; `foreign` lets somebody else commit before it looks at the request.
"""

import threading
from collections import Counter
from typing import Any


class Faults:
    """Faults that are still to come, and what was asked for so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all faults and counters."""
        self.first: dict[str, list[dict[str, Any]]] = {}
        self.every: dict[str, tuple[int, dict[str, Any]]] = {}
        self.requests, self.received = Counter[str](), Counter[str]()

    def set(self, route: str, faults: list[dict[str, Any]], every: int = 0) -> None:
        """The first requests of a route meet one fault each; or every k-th meets the only one."""
        with self._lock:
            if every:
                self.every[route] = (every, faults[0])
            else:
                self.first[route] = list(faults)

    def meet(self, route: str, num_bytes: int) -> dict[str, Any]:
        """Count a request of so many bytes; the fault that it meets, or none."""
        with self._lock:
            self.requests[route] += 1
            self.received[route] += num_bytes
            if self.first.get(route):
                return self.first[route].pop(0)
            every, fault = self.every.get(route, (0, {}))
            return fault if every and self.requests[route] % every == 0 else {}
