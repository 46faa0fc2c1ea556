"""Ids: what they look like, that none comes twice, not in another process either."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode

from broker.protocol import ids


def test_ids_are_canonical_base64url_of_as_many_bits_as_promised() -> None:
    assert len(urlsafe_b64decode(ids.new_jti() + "==")) == 16
    for prefix, made in (("req_", ids.new_request_id()), ("aud_", ids.new_record_id()), ("rev_", ids.new_act_id())):
        assert made.startswith(prefix)
        assert len(urlsafe_b64decode(made.removeprefix(prefix))) == 15


def test_no_id_comes_twice() -> None:
    made = [draw() for _ in range(10 * ids.AT_ONCE) for draw in (ids.new_jti, ids.new_request_id, ids.new_record_id)]
    assert len(set(made)) == len(made)


def test_a_forked_process_does_not_go_on_with_its_parents_ids() -> None:
    ids.new_jti()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, " ".join(ids.new_jti() for _ in range(ids.AT_ONCE)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 65_536).decode().split(" ")
    assert len(theirs) == ids.AT_ONCE
    assert not set(theirs) & {ids.new_jti() for _ in range(ids.AT_ONCE)}
