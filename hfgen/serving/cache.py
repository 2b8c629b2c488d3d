"""A cache of answers, bounded in bytes: the answer that was not asked for longest leaves first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from ..utils.arguments import checked


class ByteCache:
    """Answers by key, at most `most_bytes` of them together. It may be used from several threads.

    Args:
        most_bytes: 0: nothing is kept.

    Raises:
        ValueError: it is below 0.
    """

    @checked
    def __init__(self, most_bytes: int):
        if most_bytes < 0:
            raise ValueError(f"most_bytes={most_bytes} must be at least 0.")
        self.most_bytes, self.bytes = most_bytes, 0
        self._answers: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Hashable) -> bytes | None:
        """Return the answer of a key, or None."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: Hashable, answer: bytes) -> None:
        """Keep an answer. One that is larger than the cache is not kept."""
        with self._lock:
            self.bytes += len(answer) - len(self._answers.pop(key, b""))
            self._answers[key] = answer
            while self.bytes > self.most_bytes:
                self.bytes -= len(self._answers.popitem(last=False)[1])
