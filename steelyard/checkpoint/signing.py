"""Certificates with a signature: Ed25519 over the certificate's own words, so that who can write beside a file can't vouch for it.

Keys are PEM files as openssl makes them. `cryptography` is imported inside: who signs nothing pays nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import BadRecord, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSWORD = "STEELYARD_KEY_PASSWORD"  # noqa: S105 - the name of a variable
MAKE_KEY = "make one with: openssl genpkey -algorithm ed25519 -out KEY.pem; openssl pkey -in KEY.pem -pubout -out KEY.pub.pem"
MOST_BYTES = 64 * 1024


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """:raises UsageError: when there is none that can sign; the key itself stands in no message."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = os.environ.get(PASSWORD, "").encode() or None
    try:
        key = load_pem_private_key(_pem(path), password)
    except TypeError as error:
        why = f"is locked by a password: set {PASSWORD}" if password is None else f"has no password, yet {PASSWORD} is set"
        raise UsageError(why=f"the key {path} {why}", hint=MAKE_KEY) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            why=f"{path} is no private key that can be read (PEM{', or the password is wrong' if password else ''})", hint=MAKE_KEY
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(why=f"{path} is no Ed25519 key", hint=MAKE_KEY)
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """:raises UsageError:"""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_pem(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(why=f"{path} is no public key that can be read (PEM)", hint=MAKE_KEY) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(why=f"{path} is no Ed25519 key", hint=MAKE_KEY)
    return key


def _pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise UsageError(why=f"the key {path} can't be read: {error.strerror}", hint=MAKE_KEY) from error


def key_id(key: Ed25519PublicKey) -> str:
    """A name for a key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signed_text(record: Mapping[str, Any]) -> bytes:
    """What is signed: the record without its signature and its digest, as JSON with sorted keys and no spaces, behind a line that says what it is."""
    plain = {key: value for key, value in record.items() if key not in {"signature", "digest"}}
    return b"steelyard certificate 1\n" + json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sign(record: Mapping[str, Any], key: Path) -> dict[str, str]:
    """The signature of *record* by the private key at *key*. :raises UsageError: when the key can't be used."""
    private = read_private_key(key)
    made = base64.b64encode(private.sign(signed_text(record))).decode()
    return {"algorithm": "ed25519", "key_id": key_id(private.public_key()), "value": made}


def check_signature(record: Mapping[str, Any], keys: Sequence[Path], where: Path) -> str:
    """The id of the one of *keys* that signed *record*.

    :raises BadRecord: when none did. :raises UsageError: when a key can't be read.
    """
    from cryptography.exceptions import InvalidSignature

    signature = record.get("signature")
    hint = "prove and sign it again: steelyard load --sign KEY.pem"
    if not isinstance(signature, dict) or signature.get("algorithm") != "ed25519":
        raise BadRecord(path=where, why="it carries no signature", hint=hint)
    try:
        value = base64.b64decode(str(signature.get("value")), validate=True)
    except ValueError as error:
        raise BadRecord(path=where, why="its signature is damaged", hint=hint) from error
    text = signed_text(record)
    for path in keys:
        key = read_public_key(path)
        try:
            key.verify(value, text)
        except InvalidSignature:
            continue
        return key_id(key)
    raise BadRecord(path=where, why=f"none of the {len(keys)} trusted keys signed it as it is", hint=hint)
