"""One way to turn a name into a seed, for all randomness that is a pure function of where it is used."""

import hashlib


def seed_of(*key: object) -> int:
    """63 bits that depend on all parts of the key, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest(), "big") >> 1
