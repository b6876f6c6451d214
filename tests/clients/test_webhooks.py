"""The clients' helpers that verify webhooks, tested with the server's signatures."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import orjson
import pytest

from streamer.alerts.signing import headers, new_secret
from streamer.protocol.alerts import encode_event
from tests.support.paths import ROOT
from venta_client.webhooks import WebhookRefused, verify

SECRET = new_secret()
SENT = 1_800_000_000
BODY = encode_event("entered", "c1", {"vendorId": "v", "name": "Żaneta"}, SENT * 1000, {"user": 7}).encode()
SIGNED = headers(SECRET, "msg1", SENT, BODY)
NODE = shutil.which("node")

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("another secret", {"secret": new_secret()}),
    ("a changed body", {"body": BODY.replace(b"entered", b"left")}),
    ("another id", {"headers": SIGNED | {"webhook-id": "msg2"}}),
    ("another time", {"headers": SIGNED | {"webhook-timestamp": str(SENT + 1)}}),
    ("a replay", {"now": SENT + 301}),
    ("a clock that is behind", {"now": SENT - 301}),
    ("no signature", {"headers": {name: SIGNED[name] for name in ("webhook-id", "webhook-timestamp")}}),
    ("an empty signature", {"headers": SIGNED | {"webhook-signature": ""}}),
    ("another version", {"headers": SIGNED | {"webhook-signature": SIGNED["webhook-signature"].replace("v1", "v2")}}),
    ("no time", {"headers": SIGNED | {"webhook-timestamp": "soon"}}),
]


def given(**changed: Any) -> dict[str, Any]:
    return {"secret": SECRET, "headers": SIGNED, "body": BODY, "now": SENT, **changed}


def test_what_the_server_signs_is_verified() -> None:
    """A helper that refused valid webhooks would be removed, and the check of signatures with it."""
    for changed in (
        {},
        {"headers": {name.title(): value for name, value in SIGNED.items()}},
        {"secret": [new_secret(), SECRET]},
        {"headers": SIGNED | {"webhook-signature": f"v1,AAAA v2,x {SIGNED['webhook-signature']}"}},
        {"now": SENT + 299},
    ):
        webhook = verify(**given(**changed))
        assert (webhook.id, webhook.type, webhook.alert_id, webhook.at) == ("msg1", "vendor.entered", "c1", SENT * 1000)
        assert webhook.vendor == {"vendorId": "v", "name": "Żaneta"}
        assert webhook.metadata == {"user": 7}


@pytest.mark.parametrize(("what", "changed"), WRONG)
def test_everything_else_is_refused(what: str, changed: dict[str, Any]) -> None:
    """Otherwise anyone with the URL could send push messages to all users."""
    with pytest.raises(WebhookRefused):
        verify(**given(**changed))


def test_a_header_that_is_no_text_is_refused() -> None:
    """Web frameworks return bytes of a header that are not UTF-8 as surrogates, which must not cause a 500."""
    for name in SIGNED:
        with pytest.raises(WebhookRefused):
            verify(**given(headers=SIGNED | {name: SIGNED[name] + "\udcff"}))


def test_a_secret_that_is_none_is_a_mistake_of_the_programmer() -> None:
    """Otherwise a missing environment variable would look like an attack."""
    with pytest.raises(ValueError, match="whsec_"):
        verify(**given(secret="Non-base64!"))


@pytest.mark.skipif(NODE is None, reason="Node is not here")
def test_the_javascript_helper_decides_the_same() -> None:
    """If the helpers differed, receivers in one language would accept forgeries or refuse valid webhooks."""
    cases = [given(), *(given(**changed) for _, changed in WRONG)]
    program = f"""
import {{ verifyWebhook, WebhookRefused }} from "{(ROOT / "clients/js/webhooks.js").as_uri()}";
for (const {{ secret, headers, body, now }} of JSON.parse(process.argv[1])) {{
  const sent = new Uint8Array(Buffer.from(body, "base64"));
  for (const given of [headers, new Headers(headers)]) {{
    try {{
      console.log(JSON.stringify(await verifyWebhook(secret, given, sent, {{ now }})));
    }} catch (error) {{
      if (!(error instanceof WebhookRefused)) throw error;
      console.log("null");
    }}
  }}
}}
"""
    from base64 import b64encode

    argument = orjson.dumps([case | {"body": b64encode(case["body"]).decode()} for case in cases]).decode()
    command = [str(NODE), "--input-type=module", "-e", program, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = [orjson.loads(line) for line in done.stdout.splitlines()]
    right = {
        "id": "msg1",
        "type": "vendor.entered",
        "alertId": "c1",
        "at": SENT * 1000,
        "vendor": {"vendorId": "v", "name": "Żaneta"},
        "metadata": {"user": 7},
    }
    assert answers == [right, right, *[None] * (2 * len(WRONG))]
