"""Proof that a write comes from the worker that claimed a record. Pure.

A claim's nonce stands in the record for everybody to read and holds the hash of a proof. The worker
keeps the proof in its memory and lays it beside an end that it could not send. A job that can write
to the scratch disk can lay other ends there, but no proof, while the claim's own end is unknown.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets


class Proofs:
    """Makes the nonces of one worker, and the proof of each without keeping it."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def new_nonce(self) -> str:
        """A nonce that was never used before."""
        salt = secrets.token_hex(8)
        return f"{salt}-{_hash(self._proof(salt))}"

    def proof_of(self, nonce: str) -> str:
        """The proof of a nonce that this object made."""
        return self._proof(nonce.partition("-")[0])

    def _proof(self, salt: str) -> str:
        return hmac.new(self._key, salt.encode(), hashlib.sha256).hexdigest()


def proves(proof: str, nonce: str) -> bool:
    """Whether only the maker of `nonce` can have given `proof`."""
    return hmac.compare_digest(_hash(proof), nonce.partition("-")[2])


def _hash(proof: str) -> str:
    return hashlib.sha256(proof.encode("utf-8", "surrogatepass")).hexdigest()[:32]
