"""REDIS_URL in its forms; a wrong one must be refused at the start, with the remedy."""

from __future__ import annotations

import pytest

from streamer.broker.redis_address import RedisAddress, describe
from streamer.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "seed", "cluster", "service"),
    [
        ("redis://localhost", ("localhost", 6379), False, None),
        ("rediss://user:secret@redis.example:6380/2", ("redis.example", 6380), False, None),
        ("redis+cluster://10.0.0.1:7000", ("10.0.0.1", 7000), True, None),
        ("redis+sentinel://one:26379,two:26379/main/3", ("one", 6379), False, "main"),
    ],
)
def test_the_forms_of_the_url(url: str, seed: tuple[str, int], cluster: bool, service: str | None) -> None:
    """A form that is read wrongly connects to another Redis, or to none."""
    address = RedisAddress.check(url)
    assert (address.seed, address.cluster, address.service) == (seed, cluster, service)


def test_the_sentinels_have_a_login_of_their_own() -> None:
    """Sent to the Sentinels, the password of Redis would be refused, or disclosed."""
    url = "redis+sentinel://app:redis-secret@[::1],two:26380/main?sentinel_username=s&sentinel_password=a%2Fb"
    address = RedisAddress.check(url)
    assert address._sentinel is not None
    assert address._sentinel.sentinel_kwargs["password"] == "a/b"
    hosts = [pool.connection_pool.connection_kwargs for pool in address._sentinel.sentinels]
    assert [(host["host"], host["port"]) for host in hosts] == [("::1", 26379), ("two", 26380)]
    connection = address.connection(("primary", 6379))
    assert (connection.host, connection.username, connection.password) == ("primary", "app", "redis-secret")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost", "REDIS_URL can't be used"),
        ("redis://localhost:port", "REDIS_URL can't be used"),
        ("redis+sentinel://one:26379", "name the Sentinels and the service"),
        ("redis+sentinel:///main", "name the Sentinels and the service"),
        ("redis://localhost?retries=3", "there is no parameter"),
        ("rediss://localhost?ssl_ca_certs=/nowhere.pem", "/nowhere.pem"),
    ],
)
def test_a_wrong_url_is_refused_with_its_reason(url: str, said: str) -> None:
    """Found only when the first customer watches, a wrong URL would be an outage."""
    with pytest.raises(SettingsError, match=said):
        RedisAddress.check(url)


def test_a_silent_redis_is_explained() -> None:
    """`TimeoutError` alone names neither Redis nor the likely cause."""
    assert "did not answer in time" in describe(TimeoutError())
    assert "refused" in describe(ConnectionRefusedError("refused"))
