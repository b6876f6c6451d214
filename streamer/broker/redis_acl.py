"""The minimal permissions of the server's Redis user: keys, channels and commands."""

from __future__ import annotations

PREFIX = "v2:"
"""All keys and channels of the broker begin with this."""

CONNECTION = ("asking", "ping", "select", "time", "cluster|slots")
BROKER = (
    *("del", "eval", "expire", "get", "hdel", "hget", "hmget", "hscan", "hset", "pttl", "sadd", "set", "smembers"),
    *("spublish", "ssubscribe", "sunsubscribe", "zadd", "zmscore", "zrangebyscore", "zrem"),
)
STREAM = ("exists", "hdel", "hget", "hgetall", "hset", "xadd", "xdel", "xrange")


def acl_rules(stream_key: str | None = None) -> str:
    """The rules of an ACL user; with `stream_key` also those for the Redis Stream that other services read."""
    keys = [f"~{PREFIX}*"]
    commands = {*CONNECTION, *BROKER}
    if stream_key is not None:
        keys += [f"~{stream_key}", f"~{{{stream_key}}}:writers"]
        commands |= {*STREAM}
    return " ".join(["resetkeys", *keys, "resetchannels", f"&{PREFIX}*", "-@all", *sorted(f"+{c}" for c in commands)])
