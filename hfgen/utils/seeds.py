"""Seeds from names. All randomness is a pure function of the seed and of the place where it is used."""

import hashlib


def seed_of(*key: object) -> int:
    """Return a seed of 63 bits that depends on every part of the key. It is the same in all processes and machines."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest(), "big") >> 1
